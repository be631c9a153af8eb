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
# The photographs nearest to the border between the classes, the least certain first, each judged by
# an SVM that was trained on others.
import matplotlib.pyplot as plt
from sklearn.model_selection import cross_val_predict

decision = cross_val_predict(pipe, photos.data, photos.target, cv=folds, method="decision_function")
if decision.ndim == 1:  # two classes: the second is to the right of 0
    predicted, certainty = np.int64(decision > 0), np.abs(decision)
else:  # more: the lead of the first on the second
    predicted, certainty = decision.argmax(axis=1), np.ptp(np.sort(decision)[:, -2:], axis=1)

figure, axes = plt.subplots(2, 4, figsize=(10, 5.6), layout="constrained")
for ax, index in zip(axes.flat, np.argsort(certainty), strict=False):
    right = predicted[index] == photos.target[index]
    ax.imshow(Image.open(photos.data[index]))
    ax.set_title(
        f"taken for {photos.target_names[predicted[index]]}: {'right' if right else 'wrong'}\n"
        f"certainty {certainty[index]:.2f}",
        color="black" if right else "tab:red",
        fontsize=10,
    )
    ax.axis("off")
figure.suptitle(f"The least certain of {len(photos.data)}, of which {accuracy:.0%} are right")
plt.show()
