"""scikit-learn's own checks, all of them and on real networks; none is expected to fail."""

import inspect
from collections import Counter

import pytest
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from sklearn_cnnfeat import CNNFeatureTransformer

# The checks feed tables of 1 to 10 columns and of any numbers: each row becomes an image one pixel
# high. Without `image_shape` scikit-learn sees that no table is taken, and leaves most checks out.
ROWS = {"image_shape": (1, -1)}

# The file lies in the folder in which the tests of this module run: a relative name makes the
# names of the tests the same in every process.
ESTIMATORS = [
    CNNFeatureTransformer("tiny.keras", "conv_2", "flatten", engine="openvino", **ROWS),
    CNNFeatureTransformer("tiny.keras", "conv_1", "avg", engine="keras", **ROWS),
    CNNFeatureTransformer("tiny.keras", ["conv_1", "last"], "max", batch_size=3, n_jobs=2, **ROWS),
    # A network by name with random weights, as far as its first convolution.
    CNNFeatureTransformer(
        "mobilenet", "conv1_relu", "gem", weights=None, input_size=32, random_state=0, **ROWS
    ),
    # Takes paths.
    CNNFeatureTransformer(),
]
TABLE_ESTIMATORS = [estimator for estimator in ESTIMATORS if estimator.image_shape is not None]

# What `check_estimator` does not call.
MORE_CHECKS = [
    estimator_checks.check_dataframe_column_names_consistency,
    estimator_checks.check_get_feature_names_out_error,
    estimator_checks.check_global_output_transform_pandas,
    estimator_checks.check_global_set_output_transform_polars,
    estimator_checks.check_inplace_ensure_writeable,
    estimator_checks.check_n_features_in_after_fitting,
    estimator_checks.check_param_validation,
    estimator_checks.check_set_output_transform,
    estimator_checks.check_set_output_transform_pandas,
    estimator_checks.check_set_output_transform_polars,
    estimator_checks.check_transformer_get_feature_names_out,
    estimator_checks.check_transformer_get_feature_names_out_pandas,
]

pytestmark = [
    # Numbers of the checks are no pixels, and the package says so; that is tested elsewhere.
    pytest.mark.filterwarnings("ignore:The pixels in X run from"),
    pytest.mark.usefixtures("folder_of_model"),
]


@pytest.fixture(scope="module")
def tiny_model():
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(2, 3, activation="relu", name="conv_1"),
            keras.layers.Conv2D(3, 2, name="conv_2"),
        ]
    )


@pytest.fixture(scope="module")
def model_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save(folder / "tiny.keras")
    return folder


@pytest.fixture
def folder_of_model(model_folder, monkeypatch):
    monkeypatch.chdir(model_folder)


@parametrize_with_checks(ESTIMATORS)
def test_estimator_check(estimator, check):
    check(estimator)


def _id(value):
    return value.__name__ if inspect.isfunction(value) else repr(value).replace("\n", "")


@pytest.mark.parametrize("check", MORE_CHECKS, ids=_id)
@pytest.mark.parametrize("estimator", TABLE_ESTIMATORS, ids=_id)
def test_check_that_check_estimator_does_not_call(estimator, check):
    check(type(estimator).__name__, clone(estimator))


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimators_unfitted,
        estimator_checks.check_get_feature_names_out_error,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_mixin_order,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_param_validation,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_set_params,
        estimator_checks.check_valid_tag_types,
    ],
    ids=_id,
)
def test_check_of_an_estimator_of_paths(check):
    """What scikit-learn leaves out for estimators that take no table, but does not need one."""
    check("CNNFeatureTransformer", CNNFeatureTransformer())


# --- that the checks above are the real ones ------------------------------------------------------


class _Plain(TransformerMixin, BaseEstimator):
    """The default tags of scikit-learn's transformers, and the checks that go with them."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X


def _count_checks(estimator):
    marked = parametrize_with_checks([estimator])
    return Counter(_name(check) for _, check in marked.args[1])


def _name(check):
    # Both skipped and expected failures would come wrapped in something without a name.
    return getattr(check, "func", check).__name__


@pytest.mark.parametrize("estimator", TABLE_ESTIMATORS, ids=_id)
def test_as_many_checks_as_for_any_transformer(estimator):
    ours, plain = _count_checks(estimator), _count_checks(_Plain())
    assert plain.total() > 40
    assert not plain - ours


class _Reversing(CNNFeatureTransformer):
    def transform(self, X):
        return super().transform(X)[::-1]


class _Remembering(CNNFeatureTransformer):
    def transform(self, X):
        self.n_seen_ = len(X)
        return super().transform(X)


class _Widening(CNNFeatureTransformer):
    def transform(self, X):
        return super().transform(X).astype("float64")


@pytest.mark.parametrize(
    ("broken", "failing"),
    [
        (_Reversing, "check_methods_sample_order_invariance"),
        (_Remembering, "check_dict_unchanged"),
        (_Widening, "check_transformer_preserve_dtypes"),
    ],
)
def test_checks_find_mistakes(broken, failing):
    estimator = broken("tiny.keras", "conv_2", **ROWS)
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    assert failing in {result["check_name"] for result in results if result["status"] == "failed"}


def test_checks_of_an_estimator_with_a_model_object(tiny_model):
    """All but one: what deepcopy makes of a Keras model never has the same hash."""
    estimator = CNNFeatureTransformer(tiny_model, "conv_2", **ROWS)
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    failed = {result["check_name"] for result in results if result["status"] == "failed"}
    assert failed <= {"check_estimators_overwrite_params"}

    weights = [weight.copy() for weight in tiny_model.get_weights()]
    parameters = estimator.get_params()
    estimator.fit([[0.0, 9.0], [5.0, 2.0]])
    assert estimator.get_params() == parameters
    assert estimator.model is tiny_model
    assert all((a == b).all() for a, b in zip(weights, tiny_model.get_weights(), strict=True))
