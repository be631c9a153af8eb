"""
Photographs in folders, told apart by an SVM
============================================

Photographs lie in one folder a class. A network that was trained on a million other photographs
turns each into a row of numbers, and a support vector machine learns the classes from a few dozen
of these rows. Nothing is trained but the SVM.
"""

# %%
# The photographs
# ---------------
# ``load_image_folder`` lists the files and takes each folder's name for the class. No picture is
# opened yet.
from sklearn_cnnfeat import CNNFeatureTransformer, load_image_folder

photos = load_image_folder("photos/")
print(f"{len(photos.data)} photographs of {', '.join(photos.target_names)}")

# %%
# Features into an SVM
# --------------------
# One of the last layers is the usual first try: ``block5_pool`` of VGG16, or, with weights of 17
# instead of 59 MB, ``conv_dw_13_relu`` of MobileNet. Its 7 x 7 maps become one row, flattened
# (50,176 numbers) or averaged (1,024): with few photographs, the average often serves better.
# ``cache=True`` keeps the features, so that no photograph goes through the network once a fold.
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

cnn = CNNFeatureTransformer("mobilenet", "conv_dw_13_relu", pooling="avg", cache=True)
pipe = make_pipeline(cnn, StandardScaler(), SVC())
folds = StratifiedKFold(5, shuffle=True, random_state=0)
accuracy = cross_val_score(pipe, photos.data, photos.target, cv=folds).mean()
print(f"SVM on {cnn.layer} of {cnn.model}: {accuracy:.3f} are right")

# %%
# The same SVM on small copies of the photographs says what the network contributes.
import numpy as np
from PIL import Image

pixels = [np.ravel(Image.open(path).convert("RGB").resize((32, 32))) for path in photos.data]
svm = make_pipeline(StandardScaler(), SVC())
print(f"SVM on 32 x 32 pixels: {cross_val_score(svm, pixels, photos.target, cv=folds).mean():.3f}")

# %%
# Where the SVM hesitates
# -----------------------
# The photographs whose classes are closest to each other, each judged by an SVM that was trained on
# others, with the parts of the photograph that speak for the decision and against it.
import matplotlib.pyplot as plt

from sklearn_cnnfeat import PredictionGalleryDisplay

names = [photos.target_names[label] for label in photos.target]
PredictionGalleryDisplay.from_estimator(
    pipe, photos.data, names, which="least_certain", cv=folds, maps="occlusion", n_photos=6
)
plt.show()
