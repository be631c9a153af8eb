"""The command line: arguments -> public functions -> tables, files and exit codes.

All imports of weight happen inside the commands, so that help and completion come at once.
"""

import click

import sklearn_cnnfeat
from sklearn_cnnfeat._cli.classify import predict, search, why
from sklearn_cnnfeat._cli.commands import Group
from sklearn_cnnfeat._cli.features import extract, layers, models
from sklearn_cnnfeat._cli.housekeeping import cache, completion, demo, doctor, pack_folder, weights
from sklearn_cnnfeat._cli.pictures import filters, maps
from sklearn_cnnfeat._cli.running import run
from sklearn_cnnfeat._cli.seeing import embedding, examples, explore, gallery


def main(arguments=None):
    """Run ``cnnfeat`` and return its exit code."""
    return run(program, arguments)


class _Program(Group):
    sections = (
        ("Sort photographs into classes", ("search", "predict", "why")),
        ("Get features", ("extract", "models", "layers")),
        ("Look at photographs", ("explore", "embedding", "gallery")),
        ("Look inside a network", ("maps", "filters", "examples")),
    )
    rest = "Housekeeping"


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="'cnnfeat COMMAND --help' explains a command, with an example.",
)
@click.version_option(sklearn_cnnfeat.__version__, prog_name="cnnfeat")
def program():
    """Turn photographs into features from any layer of a CNN, and classify them.

    \b
    The main job, for a folder of photographs with one subfolder per class:
      cnnfeat search photos/ --model vgg16 -o model.joblib
      cnnfeat predict model.joblib new/*.jpg > predictions.csv
      cnnfeat why model.joblib new/1.jpg -o why.png
    """


for _command in (
    *(search, predict, why),
    *(extract, models, layers),
    *(explore, embedding, gallery),
    *(maps, filters, examples),
    *(cache, weights, pack_folder, doctor, demo, completion),
):
    program.add_command(_command)
