"""What a `label` command is refused for before torch and Ray, which take seconds, are imported."""

from jobs.boxes.pairs import read_files
from jobs.label.options import LabelOptions
from jobs.label.places import check_places
from jobs.output.output_writer import check_keep_replaced
from pipeline.storage.access import use_input_access


def checked(options: LabelOptions) -> LabelOptions:
    """The options, with pairs in the place of the names of files. No remote store is asked.

    Raises InputError for wrong values, unknown models, and places that no run can have.
    """
    options.check()
    options = read_files(options)
    check_keep_replaced(options.keep_replaced)
    use_input_access(options.input_access, options.output)
    check_places(options.input, options.output)
    return options
