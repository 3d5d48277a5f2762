"""Which paths are hidden, in folders and in archives."""


def is_hidden(path: str) -> bool:
    """Whether a folder of the path, or its last name, is hidden: `.thumbs/x.jpg`, `._x.jpg`.

    macOS keeps its own details of files in folders named `__MACOSX`.
    """
    *folders, name = path.strip("/").split("/")
    if "__MACOSX" in folders:
        return True
    return any(part.startswith(".") and part not in (".", "..") for part in (*folders, name))
