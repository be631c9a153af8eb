"""
Which layer? Let a grid search decide
=====================================

The layer is a parameter like any other, so a grid search can choose it. Early layers know edges
and colours, late ones parts of things; which serves best depends on the photographs.
"""

# %%
# Photographs and a pipeline
# --------------------------
from _offline import local_weights, photo_folder
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_cnnfeat import CNNFeatureTransformer, load_image_folder

photos = load_image_folder(photo_folder())  # yours: load_image_folder("photos/")
weights = local_weights("mobilenet")  # yours: weights = "imagenet"
pipe = Pipeline(
    [
        (
            "cnn",
            CNNFeatureTransformer(
                model="mobilenet", pooling="avg", weights=weights, random_state=0
            ),
        ),
        ("scale", StandardScaler()),
        ("classify", LogisticRegression(max_iter=2000)),
    ]
)

# %%
# The search
# ----------
# ``layer_summary`` lists the layers there are to choose from.
from sklearn.model_selection import GridSearchCV, StratifiedKFold

layers = [
    "conv1_relu",
    "conv_pw_2_relu",
    "conv_pw_4_relu",
    "conv_pw_6_relu",
    "conv_pw_10_relu",
    "conv_dw_13_relu",
]
search = GridSearchCV(
    pipe,
    {"cnn__layer": layers},
    cv=StratifiedKFold(3, shuffle=True, random_state=0),
    verbose=1,
)
search.fit(photos.data, photos.target)
print(f"best: {search.best_params_['cnn__layer']}, accuracy {search.best_score_:.3f}")

# %%
# Accuracy by layer
# -----------------
# The bars span one standard deviation over the folds. A layer whose bar overlaps the best one's
# and that comes earlier is worth a thought: everything behind it need not be computed.
import matplotlib.pyplot as plt

results = search.cv_results_
figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
ax.errorbar(
    results["param_cnn__layer"].astype(str),
    results["mean_test_score"],
    results["std_test_score"],
    marker="o",
    linestyle=":",
    capsize=4,
)
for layer, score in zip(layers, results["mean_test_score"], strict=True):
    ax.annotate(f"{score:.2f}", (layer, score), xytext=(8, 4), textcoords="offset points")
chance = max((photos.target == label).mean() for label in set(photos.target))
ax.axhline(chance, color="0.4", linewidth=1)
ax.text(0, chance, "always the largest class", va="bottom", color="0.3")
ax.set(
    xlabel="layer of MobileNet, first to last",
    ylabel="accuracy, 3 folds",
    title=f"Telling {' from '.join(photos.target_names)}",
)
ax.grid(axis="y", alpha=0.3)
plt.show()
