"""What tests of `explore` share: photographs with hostile names, and a reader of pages."""

import base64
import json
import shutil
import zlib
from html.parser import HTMLParser

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_network import save_network, save_photos

from sklearn_cnnfeat import CNNFeatureTransformer

N = 30
# Classes and files may be called anything.
HOSTILE = "<script>window.hacked=1</script>"
WORSE = "</script><img src=x onerror=window.hacked=1>"


class Page(HTMLParser):
    """The elements of a page, and what stands in those with an id."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.content, self._inside = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = dict(attributes).get("id")

    def handle_data(self, data):
        if self._inside:
            self.content[self._inside] = self.content.get(self._inside, "") + data

    def handle_endtag(self, tag):
        self._inside = None

    @property
    def facts(self):
        return json.loads(self.content["facts"])

    def line(self, name, k):
        return base64.b64decode(self.content[name].split("\n")[k])

    def maps(self, name, k):
        return zlib.decompress(self.line(name, k), -15)


def make_data(folder):
    """Return a network's file, photographs of which one has a hostile name, and their classes."""
    photos = save_photos(folder / "all", N)
    hostile = folder / "all" / f"{HOSTILE.replace('/', '_')}.jpg"
    shutil.move(photos[3], hostile)
    photos[3] = str(hostile)
    y = np.array([HOSTILE, WORSE, "bees"] * (N // 3))
    return save_network(folder / "small.keras"), np.array(photos), y


def fit_pipeline(network, photos, y):
    """Return a fitted pipeline of the network, a scaler and a logistic regression."""
    cnn = CNNFeatureTransformer(network, "three", "avg", verbose=0)
    return make_pipeline(cnn, StandardScaler(), LogisticRegression()).fit(photos, y)
