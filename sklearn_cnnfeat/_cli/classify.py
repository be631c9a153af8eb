"""Sort photographs into classes: ``search``, ``predict``, ``why``."""

from tempfile import TemporaryDirectory

import click

from sklearn_cnnfeat._cli.commands import command
from sklearn_cnnfeat._cli.options import (
    NETWORK_SETTINGS,
    PICTURE,
    POOLINGS,
    Layer,
    Many,
    OutputFile,
    cache_folder_option,
    choice_option,
    folder_argument,
    image_paths,
    on_error_option,
    picture_option,
    progress_option,
    saved_cache_option,
    saved_model_argument,
    searched_network_options,
    table_options,
    transformer,
    verbosity,
    write_picture,
)
from sklearn_cnnfeat._cli.output import is_terminal, say, show, show_table
from sklearn_cnnfeat._csv import csv_writer


@command(short_help="Find the layer and the C that classify photographs best.")
@folder_argument
@searched_network_options
@click.option(
    "-l",
    "--layer",
    "--layers",
    "layers",
    cls=Many,
    type=Layer(),
    metavar="LAYER",
    help="Layers to compare, as 'cnnfeat layers MODEL' lists them.  [default: the last one of each "
    "resolution, about six]",
)
@click.option(
    "-p",
    "--pooling",
    "poolings",
    cls=Many,
    type=click.Choice(POOLINGS),
    default=["avg"],
    help="How the maps of a layer become numbers. Several are compared.  [default: avg]",
)
@choice_option(
    "--classifier",
    choices=["auto", "svm", "linear-svm", "logreg"],
    help="What learns from the standardized features: an SVM with an RBF kernel, a linear one, or "
    "a logistic regression, which gives probabilities. 'auto' tries both SVMs and keeps the linear "
    "one where it is as good within one standard error. 'cnnfeat why' is exact for linear models.",
)
@click.option(
    "-C",
    "--C",
    "costs",
    cls=Many,
    type=click.FloatRange(min=0, min_open=True),
    default=[0.1, 1, 10],
    metavar="NUMBER",
    help="The classifier's C: the larger, the closer it follows the photographs. Several are "
    "compared.  [default: 0.1 1 10]",
)
@click.option(
    "--cv",
    "folds",
    type=click.IntRange(min=2),
    default=5,
    show_default=True,
    metavar="FOLDS",
    help="Folds of the cross-validation, stratified and shuffled.",
)
@click.option(
    "--scoring",
    default="accuracy",
    show_default=True,
    metavar="SCORE",
    help="One of scikit-learn's scores, such as balanced_accuracy or f1_macro.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed for shuffling the folds."
)
@on_error_option
@cache_folder_option
@click.option(
    "--no-cache",
    is_flag=True,
    help="Keep no features: they go to a temporary folder, and the saved pipeline keeps none "
    "either.",
)
@click.option(
    "-j",
    "--jobs",
    type=int,
    metavar="N",
    help="Processes that fit classifiers; the network uses all cores anyway.  [default: 1]",
)
@click.option(
    "-o",
    "--output",
    type=OutputFile(".joblib", ".pkl", ".skops"),
    help="Keep the best pipeline, fitted on all photographs, as .joblib or .skops.",
)
@click.option("--plot", type=PICTURE, help="Draw the scores by layer: .png, .pdf, .svg, ...")
@table_options
@progress_option
def search(
    photos,
    layers,
    on_error,
    cache_folder,
    no_cache,
    jobs,
    output,
    plot,
    style,
    progress,
    **settings,
):
    """Find the layer and the C that classify a folder of photographs best.

    PHOTOS has one subfolder per class; it comes first, since --layers, --pooling and --C take all
    values up to the next option. Each photograph goes through the network once, for all layers
    together, or once for each way to resize it; then classifiers are cross-validated on each. The
    table has one row per layer and pooling, at its best C, in the order of the network.

    Features of the photographs are kept in the user's cache; --cache-folder names another place,
    --no-cache none. 'cnnfeat predict' and 'cnnfeat why' keep features only with --cache-folder.

    \b
    Examples:
      cnnfeat search photos/ -o model.joblib
      cnnfeat search photos/ --model vgg16 --layers block3_pool block4_pool block5_pool \\
          --C 0.1 1 10 --plot search.png -o model.joblib
      cnnfeat search photos/ --model mobilenet --resize stretch crop --pooling avg max
    """
    from sklearn_cnnfeat import layer_summary, load_image_folder
    from sklearn_cnnfeat._cli.pipelines import search_folder
    from sklearn_cnnfeat._cli.saving import check_saving
    from sklearn_cnnfeat._layer_scores import choose_layers

    if output is not None:
        check_saving(output)
    if no_cache and cache_folder:
        raise click.UsageError("--no-cache and --cache-folder exclude each other.")
    if no_cache:
        # Or each photograph would go through the network once a layer and fold.
        cache_folder = click.get_current_context().with_resource(
            TemporaryDirectory(prefix="cnnfeat-", ignore_cleanup_errors=True)
        )
    cnn = transformer(
        cache=cache_folder or True,
        on_error="nan" if on_error == "skip" else "raise",
        **{name: settings.pop(name) for name in NETWORK_SETTINGS if name != "resize"},
    )
    found = load_image_folder(photos)
    grid = search_folder(
        found,
        cnn,
        layers or choose_layers(layer_summary(cnn)),
        n_jobs=jobs,
        verbose=verbosity(progress),
        **settings,
    )
    _show_scores(grid, found, style)
    if plot is not None:
        _draw_scores(grid, plot)
    if output is None:
        say("-o model.joblib keeps the best pipeline, for 'cnnfeat predict'")
    else:
        _keep(grid.best_estimator_, output, forget_cache=no_cache)


def _show_scores(grid, photos, style):
    from sklearn_cnnfeat._cli.pipelines import best_params, chance, score_table

    rows = score_table(grid)
    show_table(rows, style)
    best = min(rows, key=lambda row: row["rank"])
    score, guess = chance(grid, photos)
    say(
        f"best: {best['layer']}, {best['pooling']} pooling, C={best['C']:g}: {grid.scoring} "
        f"{best[grid.scoring]:.3f} +- {best['std']:.3f} over {grid.n_splits_} folds ({score:.3f} "
        f"for always saying {guess!r})"
    )
    kept = grid.cv_results_["params"][grid.best_index_]
    if kept != best_params(grid):
        score = grid.cv_results_["mean_test_score"][grid.best_index_]
        say(
            f"kept: a linear SVM on {kept['cnn__layer']}, {kept['cnn__pooling']} pooling, "
            f"C={kept['classifier__C']:g}: {score:.3f}, within one standard error of the best, so "
            "that 'cnnfeat why' is exact"
        )


def _draw_scores(grid, picture):
    from sklearn_cnnfeat import LayerScoreDisplay

    name = grid.scoring.replace("_", " ").capitalize()
    write_picture(LayerScoreDisplay.from_search(grid, score_name=name), picture)


def _keep(pipeline, output, forget_cache):
    from sklearn_cnnfeat._cli.saving import save_pipeline

    if forget_cache:
        pipeline.set_params(cnn__cache=None)
    save_pipeline(pipeline, output)
    say(f"wrote {output}; now: cnnfeat predict {output} IMAGES")


@command(short_help="Classify images with a saved pipeline.")
@saved_model_argument
@click.argument("images", nargs=-1, required=True, type=click.Path())
@on_error_option
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line instead of CSV."
)
@saved_cache_option
@progress_option
def predict(model, images, on_error, as_json, cache_folder, progress):
    """Classify images with a pipeline that 'cnnfeat search -o' or a program of yours has saved.

    IMAGES are files, or folders that are searched at any depth. What is printed is CSV: path,
    prediction, and probabilities of all classes, or the classifier's scores where it has no
    probabilities: the class with the largest score is predicted; of two classes there is one
    score, positive for the class in its name.

    A .joblib or .pkl file can run any code when it is loaded: load only files from sources that
    you trust. A .skops file runs none.

    \b
    Example:
      cnnfeat predict model.joblib new/*.jpg > predictions.csv
    """
    import json

    from sklearn_cnnfeat._cli.pipelines import predict_images
    from sklearn_cnnfeat._cli.saving import load_pipeline

    pipeline = load_pipeline(model, cache_folder)
    rows = predict_images(
        pipeline,
        image_paths(images),
        skip=on_error == "skip",
        warn=say,
        verbose=verbosity(progress) and not is_terminal(),  # rows would tear the bar apart
    )
    writer = csv_writer(show)
    for number, row in enumerate(rows):
        if as_json:
            show(json.dumps(row, default=str, ensure_ascii=False))
            continue
        if number == 0:
            writer.writerow(row)
        writer.writerow(row.values())


@command()
@saved_model_argument
@click.argument("image", type=click.Path(exists=True, dir_okay=False))
@picture_option("why.png")
@click.option(
    "--target",
    metavar="CLASS",
    help="The class that is explained.  [default: of two the one with positive scores, of more the "
    "predicted one]",
)
@choice_option(
    "--method",
    choices=["auto", "exact", "occlusion"],
    help="'exact' adds up to the decision and needs a linear classifier; 'occlusion' covers "
    "patches of the picture and works with all.",
)
@click.option(
    "--patch-size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Size of the patch for occlusion.",
)
@saved_cache_option
def why(model, image, output, target, method, patch_size, cache_folder):
    """Draw which parts of a picture a saved pipeline decided by.

    Red parts speak for the class, blue ones against it.

    A .joblib or .pkl file can run any code when it is loaded: load only files from sources that
    you trust. A .skops file runs none.

    \b
    Example:
      cnnfeat search photos/ --classifier linear-svm -o model.joblib
      cnnfeat why model.joblib photo.jpg -o why.png
    """
    from sklearn_cnnfeat import DecisionMapDisplay
    from sklearn_cnnfeat._cli.saving import load_pipeline

    pipeline = load_pipeline(model, cache_folder)
    classes = {str(name): name for name in getattr(pipeline, "classes_", ())}
    display = DecisionMapDisplay.from_estimator(
        pipeline,
        [image],
        target=classes.get(target, target),
        method=method,
        patch_size=patch_size,
    )
    decision = display.decision
    against = "" if decision.other is None else f" against {decision.other}"
    say(f"{decision.target}{against}: {decision.decision:+.3g} ({decision.method} map)")
    write_picture(display, output)
