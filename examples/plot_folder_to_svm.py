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
from _offline import local_weights, photo_folder
from sklearn.model_selection import train_test_split

from sklearn_cnnfeat import CNNFeatureTransformer, load_image_folder

folder = photo_folder()  # yours: folder = "photos/"
photos = load_image_folder(folder)
files, files_test, y, y_test = train_test_split(
    photos.data, photos.target, test_size=0.5, stratify=photos.target, random_state=0
)
print(f"{len(photos.data)} photographs of {', '.join(photos.target_names)}")

# %%
# Features into an SVM
# --------------------
# The last pooling layer of VGG16, flattened, is the usual first try. Where its weights are not on
# this disk, the example takes the much smaller MobileNet instead.
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

weights = local_weights("vgg16")
if weights:
    cnn = CNNFeatureTransformer(model="vgg16", layer="block5_pool")  # yours: this line alone
else:
    weights = local_weights("mobilenet")
    layer = "conv_dw_13_relu" if weights else "conv_pw_3_relu"  # random weights: shallow is better
    cnn = CNNFeatureTransformer(
        model="mobilenet", layer=layer, pooling="avg", weights=weights, random_state=0
    )
pipe = make_pipeline(cnn, SVC())
pipe.fit(files, y)
accuracy = pipe.score(files_test, y_test)
print(f"features of {cnn.model}, {cnn.layer}: {accuracy:.3f} of the other half are right")

# %%
# The same SVM on small copies of the photographs says what the network contributes.
import numpy as np
from PIL import Image


def pixels(paths):
    return [np.asarray(Image.open(path).convert("RGB").resize((32, 32))).ravel() for path in paths]


accuracy_pixels = SVC().fit(pixels(files), y).score(pixels(files_test), y_test)
print(f"32 x 32 pixels: {accuracy_pixels:.3f}")

# %%
# Where the SVM hesitates
# -----------------------
# The photographs nearest to the border between the classes, the least certain first. With more
# than two classes, the certainty is the lead of the first class on the second.
import matplotlib.pyplot as plt

decision = pipe.decision_function(files_test)
if decision.ndim == 1:
    certainty = np.abs(decision)
else:
    certainty = np.diff(np.sort(decision, axis=1)[:, -2:], axis=1).ravel()
predicted = pipe.predict(files_test)

figure, axes = plt.subplots(2, 4, figsize=(10, 5.6), layout="constrained")
for ax, index in zip(axes.flat, np.argsort(certainty), strict=False):
    right = predicted[index] == y_test[index]
    ax.imshow(Image.open(files_test[index]))
    ax.set_title(
        f"taken for {photos.target_names[predicted[index]]}\n"
        f"{'right' if right else 'wrong'}, certainty {certainty[index]:.2f}",
        color="black" if right else "tab:red",
        fontsize=10,
    )
    ax.axis("off")
figure.suptitle(f"The least certain of {len(files_test)} ({accuracy:.0%} are right)")
plt.show()
