"""The worked examples that `detr-batch query --examples` prints."""

EXAMPLES: tuple[tuple[str, str], ...] = (
    (
        "How many objects of each class",
        "SELECT label, count(*) AS objects FROM latest GROUP BY label ORDER BY objects DESC",
    ),
    (
        "The most confident boxes of one class",
        "SELECT image_id, round(score, 3) AS score, x_min, y_min, x_max, y_max FROM latest "
        "WHERE label = 'circle' AND score > 0.8 ORDER BY score DESC LIMIT 10",
    ),
    (
        "The boxes of one image (an image_id is its whole address)",
        "SELECT label, round(score, 3) AS score, x_min, y_min, x_max, y_max FROM latest "
        "WHERE image_id LIKE '%/a.jpg' ORDER BY latest.score DESC",
    ),
    (
        "Images without any object",
        "SELECT image_id FROM latest_images WHERE status = 'ok' AND num_detections = 0",
    ),
    (
        "Why images failed",
        "SELECT status, count(*) AS images, any_value(error) AS sample FROM latest_images "
        "WHERE status <> 'ok' GROUP BY status ORDER BY images DESC",
    ),
    (
        "Classes that are seen together",
        "SELECT a.label, b.label AS other, count(DISTINCT a.image_id) AS images "
        "FROM latest AS a JOIN latest AS b USING (run, shard, image_id) WHERE a.label < b.label "
        "GROUP BY ALL ORDER BY images DESC LIMIT 10",
    ),
    (
        "The most crowded images",
        "SELECT image_id, num_detections FROM latest_images ORDER BY num_detections DESC LIMIT 10",
    ),
    (
        "Small objects, as COCO counts them (less than 32 x 32 pixels)",
        "SELECT label, count(*) FILTER ((x_max - x_min) * (y_max - y_min) < 1024) AS small, "
        "count(*) AS objects FROM latest GROUP BY label ORDER BY label",
    ),
    (
        "How scores are spread",
        "SELECT floor(score * 10) / 10 AS score, count(*) AS boxes FROM latest "
        "GROUP BY ALL ORDER BY score",
    ),
    (
        "What each run added",
        "SELECT run, count(*) AS images, count(*) FILTER (status <> 'ok') AS failed, "
        "sum(num_detections) AS boxes FROM images GROUP BY run ORDER BY run",
    ),
    (
        "Images whose labels a later run replaced",
        "SELECT uri, count(DISTINCT run) AS versions, max(run) AS newest FROM images "
        "GROUP BY uri HAVING versions > 1",
    ),
)


def examples() -> str:
    """Return the worked examples as text for people."""
    return "\n\n".join(f"-- {title}\n{sql}" for title, sql in EXAMPLES)
