"""A linear classifier on feature vectors: logistic regression, its regularisation by validation.

Needs scikit-learn.
"""

import dataclasses

import numpy as np

STRENGTHS = tuple(2.0**power for power in range(-8, 3))  # C: the inverse of the regularisation
FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Classification:
    """What `classify` found.

    Attributes:
      penalty: "l1" or "l2", and strength, scikit-learn's C: those of the lowest validation error.
      train_error, validation_error, test_error: shares of wrong labels in [0, 1]; of the
        validation, the mean over the folds; test_error is None without a test set.
      test_size: number of test vectors.
      num_nonzero: nonzero weights, of num_weights.
      top_feature: the feature whose weights have the largest sum of magnitudes, each for features
        of unit variance.
      top_feature_error: error of the same classifier on that feature alone, on the test set if
        there is one, else on the training set.
      classes: tuple of the labels.
    """

    penalty: str
    strength: float
    train_error: float
    validation_error: float
    test_error: float | None
    test_size: int
    num_nonzero: int
    num_weights: int
    top_feature: int
    top_feature_error: float
    classes: tuple

    def __str__(self):
        which = "training" if self.test_error is None else "test"
        test = "none" if self.test_error is None else f"{self.test_error:.2%}"
        return (
            f"error: test {test}, validation {self.validation_error:.2%}, training "
            f"{self.train_error:.2%}\n"
            f"{self.penalty} penalty, C = {self.strength:g}, {self.num_nonzero} of "
            f"{self.num_weights} weights are not zero\n"
            f"feature {self.top_feature} alone: {which} error {self.top_feature_error:.2%}"
        )


def classify(train, test=None, penalties=("l1", "l2"), strengths=STRENGTHS, folds=FOLDS, seed=0):
    """Fits a logistic regression whose penalty and strength do best in cross-validation.

    Features are scaled to mean 0 and variance 1 by what is fitted on.

    Args:
      train: (features, labels): real [n, d], and n labels, numbers or strings.
      test: the same for the test error; None for none.
      penalties: some of "l1" and "l2".
      strengths: positive numbers C to choose from; larger ones regularise less.
      folds: of the cross-validation, each with its share of every class; as many at most as the
        smallest class has vectors.
      seed: of the folds.
    Returns:
      Classification.
    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: features are not finite numbers [n, d], labels do not fit them, there are fewer
        than two classes or two vectors in one, the test set does not fit, or a choice is unknown.
    """
    try:
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
    except ImportError as error:
        raise ImportError(
            f"classify: scikit-learn is needed (pip install scikit-learn). Received: {error}"
        ) from error
    features, labels = _checked("train", *train)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        found = ", ".join(f"{n} of {name}" for name, n in zip(classes, counts, strict=True))
        raise ValueError(
            "classify: the training set must have two classes or more with two vectors or more "
            f"each. Received: {found}"
        )
    if test is not None:
        test = _checked("test", *test, features.shape[1], classes)
    unknown = set(penalties) - {"l1", "l2"}
    if unknown or not penalties or not strengths or min(strengths) <= 0 or folds < 2:
        raise ValueError(
            "classify: there must be penalties of l1 and l2, positive strengths, and folds of 2 or "
            f"more. Received: {penalties}, {strengths}, {folds}"
        )
    splits = StratifiedKFold(min(folds, counts.min()), shuffle=True, random_state=seed)
    grid = [
        {"logistic": [_logistic(penalty, len(classes), seed)], "logistic__C": list(strengths)}
        for penalty in penalties
    ]
    search = GridSearchCV(_model(None), grid, cv=splits, scoring="accuracy", error_score="raise")
    search.fit(features, labels)
    model = search.best_estimator_
    weights = model["logistic"].coef_
    top = int(np.argmax(np.abs(weights).sum(axis=0)))
    alone = _model(_logistic("l2", len(classes), seed).set_params(C=1.0))
    alone.fit(features[:, [top]], labels)
    scored = (features, labels) if test is None else test
    return Classification(
        penalty=penalties[search.best_index_ // len(strengths)],
        strength=float(search.best_params_["logistic__C"]),
        train_error=float(1 - model.score(features, labels)),
        validation_error=float(1 - search.best_score_),
        test_error=None if test is None else float(1 - model.score(*test)),
        test_size=0 if test is None else len(test[1]),
        num_nonzero=int(np.count_nonzero(weights)),
        num_weights=weights.size,
        top_feature=top,
        top_feature_error=float(1 - alone.score(scored[0][:, [top]], scored[1])),
        classes=tuple(classes.tolist()),
    )


def _model(logistic):
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    return Pipeline([("scale", StandardScaler()), ("logistic", logistic)])


def _logistic(penalty, num_classes, seed):
    """With the fastest solver for the penalty; liblinear knows two classes only."""
    from sklearn.linear_model import LogisticRegression

    is_old = LogisticRegression().get_params().get("penalty", "deprecated") != "deprecated"
    named = {"penalty": penalty} if is_old else {"l1_ratio": float(penalty == "l1")}  # before 1.8
    solver = "lbfgs" if penalty == "l2" else "liblinear" if num_classes == 2 else "saga"
    return LogisticRegression(**named, solver=solver, max_iter=1000, random_state=seed)


def _checked(name, features, labels, num_features=None, classes=None):
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or features.dtype.kind not in "fiu" or not features.size:
        raise ValueError(
            f"classify: the features of the {name} set must be numbers [n, d]. Received: "
            f"{features.dtype}{list(features.shape)}"
        )
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"classify: the {name} set must have {len(features)} labels, one for each vector. "
            f"Received: shape {list(labels.shape)}"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"classify: the features of the {name} set must be finite")
    if num_features is not None and features.shape[1] != num_features:
        raise ValueError(
            f"classify: the {name} set must have {num_features} features, as the training set. "
            f"Received: {features.shape[1]}"
        )
    if classes is not None and not np.isin(labels, classes).all():
        unknown = sorted(set(labels.tolist()) - set(classes.tolist()))
        raise ValueError(
            f"classify: the {name} set must have labels of the training set. Received: {unknown}"
        )
    return features, labels
