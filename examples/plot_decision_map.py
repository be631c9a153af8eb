"""
Where did the decision come from?
=================================

A pipeline of a network, a scaler and a logistic regression adds up a contribution of every position
in the picture. So it can say exactly where its decision came from.
"""

# %%
# A pipeline, and photographs that it has not seen
# -------------------------------------------------
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sklearn_cnnfeat import (
    CNNFeatureTransformer,
    DecisionMapDisplay,
    decision_map,
    load_image_folder,
)

photos = load_image_folder("photos/")
names = [photos.target_names[label] for label in photos.target]
known, unseen, y_known, y_unseen = train_test_split(
    photos.data, names, test_size=6, stratify=names, random_state=0
)
cnn = CNNFeatureTransformer("mobilenet", "conv_dw_13_relu", pooling="avg")
pipe = make_pipeline(cnn, StandardScaler(), LogisticRegression(max_iter=2000))
pipe.fit(known, y_known)

# %%
# Six decisions
# -------------
# Red speaks for what was predicted, blue against it; where the picture is as on average, it stays
# gray. Lines enclose what counts most.
import matplotlib.pyplot as plt

from sklearn_cnnfeat import PredictionGalleryDisplay

PredictionGalleryDisplay.from_estimator(pipe, unseen, y_unseen, n_photos=6)
plt.show()

# %%
# The numbers behind a picture. They add up.
result = decision_map(pipe, unseen[0])
print(f"positions:             {result.map.shape[0]} x {result.map.shape[1]}")
print(f"sum of contributions: {result.map.sum():+.6f}")
print(f"intercept:            {result.intercept:+.6f}")
print(f"decision:             {pipe.decision_function(unseen[:1])[0]:+.6f}")

# %%
# Any other classifier
# --------------------
# Behind a curved kernel nothing adds up. There, patches of the picture are covered, and the map
# shows what that takes away from the decision.
pipe.steps[-1] = ("svc", SVC())
pipe.fit(known, y_known)
DecisionMapDisplay.from_estimator(pipe, unseen[0])
plt.show()
