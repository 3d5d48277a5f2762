"""What the HTTP side of the endpoint is started with."""

from dataclasses import dataclass, field

from pipeline.storage.image_hosts import ImageHosts


@dataclass(frozen=True)
class ApiSettings:
    """The settings of the routes. All replicas of the ingress have the same."""

    score_threshold: float = 0.3  # of a request that gives none
    usd_per_1000_images: float | None = None
    keys: str | None = None  # file or URL of the keys; None: no key is needed
    hosts: ImageHosts = field(default_factory=ImageHosts)  # beside the public ones
    max_images: int = 64  # of a request
    max_image_bytes: int = 20 << 20
    max_pixels: int = 100_000_000  # of an image
    max_request_pixels: int = 2_000_000_000  # of all images of a request
    max_stored_bytes: int = 10 << 30  # of the files of a scope
    max_body_bytes: int = 64 << 20  # of a request that is no upload of a file
    max_upload_bytes: int = (200 << 20) + (1 << 20)  # with the form around it
    held_bytes: int = 1 << 30  # bodies and downloads of all requests at a time
    # In which a body must have come, and of an upload some part (`LEAST_CAME`).
    body_seconds: float = 60.0
    requests_at_once: int = 256  # of a key, of the 1024 connections of a replica
    images_at_once: int = 128  # of a key, that wait or are computed
    bodies_at_once: int = 128  # of a key, of the requests with images whose bodies still come
    uploads_at_once: int = 16  # of a key; where none is needed, of an address
    downloads: int = 32  # of a client at a time
    download_seconds: float = 20.0  # of an image, with its redirects
    stall_seconds: float = 5.0  # between two pieces of an image
    batch_outputs: tuple[str, ...] = ()  # URLs of folders that batches over lakes may write to

    def cost_of(self, images: int) -> float | None:
        """USD for this many images; None without a price."""
        price = self.usd_per_1000_images
        return None if price is None else images * price / 1000
