"""Which names and values are secrets: parameters of URLs, headers, and environment variables."""

import re
from urllib.parse import unquote

# Names are compared without case and punctuation: `X-Amz-Signature` is `xamzsignature`. These names
# are secret, or belong to a signature and differ each time that a store signs the same object.
_PARAMETERS = frozenset(
    "auth authorization authkey bearer edgecachetoken hdnea hdnts jwt passwd passphrase pwd sas "
    # AWS and CloudFront (and x-amz-*), Google (and x-goog-*), Azure
    "sig awsaccesskeyid accesskeyid keypairid googleaccessid accountkey sharedaccesssignature "
    # Alibaba: not x-oss-process, which says how an image is resized
    "ossaccesskeyid xosssignatureversion xosscredential xossdate xossexpires xossadditionalheaders "
    # Tencent
    "qsignalgorithm qak qsigntime qkeytime qheaderlist qurlparamlist "
    # Huawei
    "xobsdate xobscredential xobsexpires xobssignedheaders xobsalgorithm "
    "cookie setcookie proxyauthorization sessionid sessid jsessionid phpsessid connectsid "
    "aspxauth subscriptionkey authcode accesscode hmac hmacsha1 hmacsha256 hdntl".split()
)
_PREFIXES = ("xamz", "xgoog", "oauth", "aspsessionid")
# These may name an object, too (`?code=A17`): they are secret where the value has the form of one.
# The key of an Azure Function is a `code`.
_SECRET_IF_LONG = frozenset("sign code ticket alfticket verify".split())
_SUFFIXES = (
    "token", "signature", "password", "secret", "apikey", "accesskey", "secretkey", "privatekey",
    "credential", "credentials",
)  # fmt: skip
_PUBLIC = frozenset("pagetoken nextpagetoken nexttoken continuationtoken".split())
SIGNED = ("xamz", "xgoog")  # names that nothing but a signed address contains
HEADERS = frozenset("authorization proxyauthorization cookie setcookie".split())
PASSWORDS = frozenset("passphrase passwd password pwd".split())
# Words that the name of a file may contain too, as in `image?token=5`.
AMBIGUOUS = PASSWORDS | frozenset(
    "auth bearer cookie credential credentials sas secret token".split()
)
# Tokens that are known by their form: JSON web tokens, and those of AWS, GitHub, Hugging Face,
# GitLab, Google and Slack, and the paths of webhooks of Slack and Discord.
TOKEN = re.compile(
    r"(?<![A-Za-z0-9_-])(?:eyJ[\w-]{8,}+\.[\w-]{8,}+(?:\.[\w-]*+)?|gh[opsur]_\w{30,}+"
    r"|github_pat_\w{20,}+|hf_[A-Za-z0-9]{30,}+|glpat-[\w-]{20,}+|AIza[\w-]{35}|xox[a-z]-[\w-]{10,}+"
    r"|sk-detr-[\w-]{20,}+"
    r"|(?<=hooks\.slack\.com/)(?:services|triggers|workflows)/[\w/-]++"
    r"|(?<=discord\.com/api/webhooks/)\d++/[\w-]++"
    r")|(?<![A-Z0-9])A(?:KI|SI)A[A-Z0-9]{16}(?![A-Z0-9])",
    re.ASCII,
)
_LONG = re.compile(r"[\w%+/=-]{24,}", re.ASCII)  # the form of a signature or key


def normalize(name: str) -> str:
    """A name without case, punctuation and percent encoding."""
    return re.sub(r"[\W_]+", "", unquote(name)).lower()


def is_secret_parameter(name: str, value: str = "") -> bool:
    """Whether a parameter of a URL, or a header, is secret or differs with each signature."""
    plain = normalize(name)
    if plain in _PARAMETERS or plain.startswith(_PREFIXES):
        return True
    if plain.endswith(_SUFFIXES) and plain not in _PUBLIC:
        return True
    return bool(TOKEN.search(value) or (plain in _SECRET_IF_LONG and _LONG.fullmatch(value)))


_BESIDE = frozenset("se sp sv sr st expires policy".split())
_BESIDE_AZURE = frozenset(
    "spr sip si ss srt skoid sktid skt ske sks skv saoid suoid scid sdd ses".split()
)


def is_beside_signature(name: str, value: str, names: frozenset[str]) -> bool:
    """Whether a parameter belongs to the signature of a URL whose parameters are `names`.

    The names are normalized. `key` is the key of a map server, unless it may name an object.
    """
    if name == "key":
        return _LONG.fullmatch(value) is not None and "/" not in unquote(value)
    return name in _BESIDE or (name in _BESIDE_AZURE and {"sig", "sv"} <= names)


# Words of the names of environment variables, which are split at `_`, at digits and where the case
# changes.
_WORDS = frozenset(
    "secrets tokens passwords pwd pw credential credentials creds apikeys sas jwt bearer cookie "
    "signature sig authorization".split()
)
_WORD_ENDINGS = (
    "password", "passwd", "passphrase", "secret", "token", "apikey", "accesskey", "pass", "pat",
)  # fmt: skip
_HARMLESS = frozenset("bypass compass encompass overpass trespass compat expat".split())
_LAST_WORDS = frozenset("key keys dsn webhook".split())
_SETTINGS = frozenset("mode type method scheme enabled url uri host server realm timeout".split())
# A URL of one of these services contains a password as a rule.
_ADDRESSES = frozenset("url uri".split())
_SERVICES = frozenset(
    "database db postgres postgresql pg mysql mariadb mssql oracle mongo mongodb redis amqp "
    "rabbitmq broker clickhouse snowflake jdbc sqlalchemy webhook".split()
)
_PHRASES = ("accesskey", "apikey", "privatekey", "secretkey", "connectionstring")


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable holds a secret, by its name."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    last, together = words[-1:], "".join(words)
    named = {word for word in words if word in _WORDS or word.endswith(_WORD_ENDINGS)}
    if named - _HARMLESS or any(phrase in together for phrase in _PHRASES):
        return True
    if "auth" in words and _SETTINGS.isdisjoint(last):
        return True
    services = _ADDRESSES.intersection(last) and _SERVICES.intersection(words)
    return bool(services) or not _LAST_WORDS.isdisjoint(last)
