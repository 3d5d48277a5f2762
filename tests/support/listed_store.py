"""An HTTP server that answers S3's ListObjectsV2 alone, for a made-up bucket of any size."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from tests.support.web import QuietHandler, served

PAGE = 1000  # objects in one answer; S3 gives as many
_ENTRY = (
    "<Contents><Key>{key}</Key><LastModified>2026-11-25T02:00:00.000Z</LastModified>"
    "<ETag>&quot;{etag}&quot;</ETag><Size>150000</Size><StorageClass>STANDARD</StorageClass>"
    "</Contents>"
)


@contextmanager
def run_listing_server(
    count: int, key: Callable[[int], str], etag: Callable[[int], str]
) -> Iterator[str]:
    """Run the server and yield its URL; object `i` has `key(i)` and `etag(i)`, keys ascending."""

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            if "list-type" not in query:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            most = int(query.get("max-keys", [str(PAGE)])[0])
            start = int(query.get("continuation-token", ["0"])[0])
            stop = min(start + min(most, PAGE), count)
            entries = "".join(_ENTRY.format(key=key(i), etag=etag(i)) for i in range(start, stop))
            more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < count else ""
            truncated = "true" if more else "false"
            body = (
                '<?xml version="1.0"?><ListBucketResult '
                'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>lake</Name>'
                f"<KeyCount>{stop - start}</KeyCount><IsTruncated>{truncated}</IsTruncated>"
                f"{more}{entries}</ListBucketResult>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

    with served(Handler) as address:
        yield address
