import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.special import softmax
from sklearn.datasets import make_moons
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import cross_val_score

from clfew.finetuning import label_propagation, probes
from clfew.finetuning.label_propagation import (
    ALPHA,
    balance,
    neighbour_graph,
    propagate,
    propagated_probabilities,
    propagation_head,
)
from clfew.finetuning.probes import FEW_LABELS, SMOOTHING, STRENGTHS, folds, knn_head, linear_head
from clfew.models.classifier import UnitHead


def clusters(images=90, classes=3, dim=6, std=1.0, seed=0):
    """Makes float32 features of different scales and offsets around a centre for each class."""
    random = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    features = random.normal(0, 2, (classes, dim))[labels] + random.normal(0, std, (images, dim))
    return (features * np.geomspace(0.1, 10, dim) + 5).astype(np.float32), labels


def probabilities(head, features):
    with torch.no_grad():
        return torch.softmax(head(torch.from_numpy(features)), dim=1).numpy()


def scaled(features, scaling):
    """Scales features by the mean and standard deviation of all images, labelled or not."""
    centred = features - features.mean(0)
    if scaling == "standardised":
        return centred / features.std(0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


@pytest.mark.parametrize("scaling", ["standardised", "unit"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_linear_head_is_scikit_learns_regression_on_scaled_features(monkeypatch, classes, scaling):
    monkeypatch.setattr(probes, "STRENGTHS", {scaling: STRENGTHS[scaling]})
    features, labels = clusters(classes=classes)
    labelled = np.arange(40)
    head, used = linear_head(features, labelled, labels[labelled], classes, 0)
    assert used["scaling"] == scaling
    inputs = scaled(features, scaling)
    model = LogisticRegression(C=used["strength"], max_iter=1000).fit(inputs[labelled], labels[labelled])
    np.testing.assert_allclose(probabilities(head, features), model.predict_proba(inputs), atol=1e-4)


@pytest.mark.parametrize("present", [(0, 2), (0, 2, 3)])
def test_a_class_without_labels_is_never_predicted(present):
    features, labels = clusters(classes=4)
    labelled = np.flatnonzero(np.isin(labels, present))
    head, _ = linear_head(features, labelled, labels[labelled], 4, 0)
    predicted = probabilities(head, features)
    missing = sorted(set(range(4)) - set(present))
    assert predicted[:, missing].max() < 1e-6
    assert (predicted[labelled].argmax(1) == labels[labelled]).mean() > 0.8


def test_scaling_and_strength_are_what_cross_validation_prefers():
    for std in (0.3, 4.0):
        features, labels = clusters(std=std, dim=10)
        labelled = np.arange(30)
        _, used = linear_head(features, labelled, labels[labelled], 3, 0)
        losses = {
            (scaling, c): -cross_val_score(
                LogisticRegression(C=c, max_iter=1000),
                scaled(features, scaling)[labelled],
                labels[labelled],
                cv=folds(labels[labelled], 0),
                scoring="neg_log_loss",
            ).mean()
            for scaling, strengths in STRENGTHS.items()
            for c in strengths
        }
        assert (used["scaling"], used["strength"]) == min(losses, key=losses.get)


def test_few_labels_take_the_default():
    features, labels = clusters(std=4.0, dim=20)
    head, used = linear_head(features, np.arange(8), labels[:8], 3, 0)
    assert (used["scaling"], used["strength"]) == FEW_LABELS
    assert isinstance(head, UnitHead)


def test_a_unit_head_ignores_the_length_of_features():
    head = UnitHead(4, 3)
    head.centre.copy_(torch.tensor([1.0, -2.0, 0.0, 3.0]))
    features = torch.randn(5, 4)
    longer = head.centre + 7 * (features - head.centre)
    torch.testing.assert_close(head(features), head(longer))


def test_folds_hold_every_class_on_both_sides():
    labels = np.array([0] * 4 + [1] * 7)
    splits = folds(labels, 0)
    assert sorted(np.concatenate([held_out for _, held_out in splits]).tolist()) == list(range(11))
    for train, held_out in splits:
        assert set(labels[train]) == set(labels[held_out]) == {0, 1}
        assert not set(train) & set(held_out)
    assert folds(np.array([0, 0, 1]), 0) == []


def slow_knn(features, bank, labels, classes, k):
    """Votes image by image among the k most similar, with weights exp(cosine / 0.07)."""
    votes = np.zeros((len(features), classes))
    for i, feature in enumerate(features):
        cosine = [feature @ b / np.linalg.norm(feature) / np.linalg.norm(b) for b in bank]
        for j in sorted(range(len(bank)), key=lambda j: -cosine[j])[:k]:
            votes[i, labels[j]] += np.exp(cosine[j] / 0.07)
    return votes / votes.sum(1, keepdims=True)


@pytest.mark.parametrize(("labels_a_class", "k"), [(1, 1), (6, 6), (25, 20)])
def test_the_neighbour_head_equals_the_slow_vote(labels_a_class, k):
    features, labels = clusters(std=2.0)
    labelled = np.arange(3 * labels_a_class)
    head = knn_head(features, labelled, labels[labelled], 3)
    assert head.k == k
    expected = slow_knn(features.astype(np.float64), features[labelled], labels[labelled], 3, k)
    floor = SMOOTHING / k  # Of every class.
    smoothed = (expected + floor) / (1 + 3 * floor)
    np.testing.assert_allclose(probabilities(head, features), smoothed, atol=1e-4)


def test_the_smallest_class_limits_the_voters():
    features, labels = clusters()
    labelled = np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in ((0, 8), (1, 3), (2, 5))])
    assert knn_head(features, labelled, labels[labelled], 3).k == 3


def test_the_graph_is_symmetric_normalised_and_without_loops():
    features, _ = clusters()
    graph = neighbour_graph(features)
    assert sparse.issparse(graph) and graph.shape == (90, 90)
    assert abs(graph - graph.T).max() < 1e-12
    assert abs(graph.diagonal()).max() == 0
    assert ((graph > 0).sum(1) >= 15).all() and graph.min() >= 0
    largest = np.abs(np.linalg.eigvalsh(graph.toarray())).max()
    assert largest == pytest.approx(1.0, abs=1e-9)  # Of D^-1/2 W D^-1/2.


def test_the_graph_joins_the_nearest_by_cosine_of_standardised_features():
    features, _ = clusters()
    inputs = (features - features.mean(0)) / features.std(0)
    unit = inputs / np.linalg.norm(inputs, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(90)
    graph = neighbour_graph(features).toarray()
    for i in range(90):
        nearest = np.argsort(-cosine[i])[:15]
        assert (graph[i, nearest] > 0).all()
    # Weights fall with the distance, before the degrees divide them.
    weight = np.where(graph > 0, np.exp((cosine - 1) / 0.1), 0)
    mutual = (np.argsort(np.argsort(-cosine, axis=1), axis=1) < 15).astype(float)
    weight = weight * (mutual + mutual.T) / 2
    expected = weight / np.sqrt(np.outer(weight.sum(1), weight.sum(1)))
    np.testing.assert_allclose(graph, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("images", [2, 3, 10])
def test_a_graph_of_fewer_images_than_neighbours_joins_all(images):
    graph = neighbour_graph(clusters(images)[0]).toarray()
    assert ((graph > 0).sum(1) == images - 1).all()


LABELLED, LABELS = np.array([0, 1, 2, 5]), np.array([0, 1, 2, 2])


def test_propagate_equals_the_iteration_on_a_dense_matrix():
    dense = neighbour_graph(clusters()[0]).toarray()
    start = np.zeros((90, 3))
    start[[0, 1, 2, 5], [0, 1, 2, 2]] = [1, 1, 0.5, 0.5]  # Each class with the same mass.
    mass = start.copy()
    for _ in range(100):
        mass = ALPHA * dense @ mass + (1 - ALPHA) * start
    result = propagate(sparse.csr_matrix(dense), LABELLED, LABELS, 3)
    np.testing.assert_allclose(result, mass, rtol=1e-9, atol=1e-15)


def test_propagate_converges_to_the_closed_form(monkeypatch):
    graph = neighbour_graph(clusters()[0])
    start = np.zeros((90, 3))
    start[[0, 1, 2, 5], [0, 1, 2, 2]] = [1, 1, 0.5, 0.5]
    # Zhou et al., equation 3, with the factor that they leave out.
    closed = (1 - ALPHA) * np.linalg.solve(np.eye(90) - ALPHA * graph.toarray(), start)
    monkeypatch.setattr(label_propagation, "_STEPS", 2000)
    np.testing.assert_allclose(propagate(graph, LABELLED, LABELS, 3), closed, rtol=1e-6, atol=1e-12)
    monkeypatch.undo()
    # The hundred steps taken leave α^100 of the distance, at most.
    distance = np.linalg.norm(propagate(graph, LABELLED, LABELS, 3) - closed, 2)
    assert distance <= ALPHA**100 * np.linalg.norm(start - closed, 2) + 1e-12


def test_balance_gives_rows_of_one_and_classes_of_the_same_mass():
    random = np.random.default_rng(0)
    mass = random.uniform(0.1, 1, (300, 3)) * [1, 5, 20]
    predicted = balance(mass)
    np.testing.assert_allclose(predicted.sum(1), 1)
    np.testing.assert_allclose(predicted.sum(0), 100, rtol=0.01)
    # The odds of two classes change by the same factor in all images.
    odds = (predicted[:, 0] / predicted[:, 1]) / (mass[:, 0] / mass[:, 1])
    np.testing.assert_allclose(odds, odds[0], rtol=1e-6)


def test_an_image_that_no_label_reaches_has_no_class():
    mass = np.array([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]])
    np.testing.assert_allclose(balance(mass), [[1, 0], [0, 1], [0, 0]])


def test_an_image_that_labels_hardly_reach_is_not_given_to_the_rarest_class():
    mass = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1e-3], [1e-30, 1e-36]])
    assert balance(mass)[4].argmax() == 0


def foreign(count=60, strangers=40):
    """Two classes of unequal size, and images that have nothing to do with them: features, labels, and
    which images are strangers."""
    random = np.random.default_rng(0)
    sizes = (count - 18, 18, strangers)
    centres = np.repeat(np.eye(3) * 30, sizes, axis=0)
    features = (centres + random.normal(size=(sum(sizes), 3))).astype(np.float32)
    return features, np.repeat([0, 1, -1], sizes), np.repeat([False, False, True], sizes)


def test_images_that_no_label_reaches_are_not_learned_from():
    """Nobody has labelled anything of their kind: they must not become the rarest class."""
    features, labels, strangers = foreign()
    graph, labelled = neighbour_graph(features), np.array([0, 1, 42, 43])
    predicted = propagated_probabilities(graph, labelled, labels[labelled], 2)
    assert (predicted[strangers] == 0).all()
    np.testing.assert_allclose(predicted[~strangers].sum(1), 1)
    head = propagation_head(features, graph, labelled, labels[labelled], 2)
    without = features.copy()
    without[strangers] = features[strangers][::-1]  # Their order is all that could matter.
    other = propagation_head(without, graph, labelled, labels[labelled], 2)
    torch.testing.assert_close(head.weight, other.weight, rtol=1e-4, atol=1e-6)


def two_moons():
    """Makes two interleaved half-circles, as features in which near points have a high cosine."""
    points, labels = make_moons(300, noise=0.06, random_state=0)
    anchors = make_moons(100, noise=0.2, random_state=1)[0]
    return rbf_kernel(points, anchors, gamma=8).astype(np.float32), labels


def test_one_label_a_class_spreads_over_two_moons_and_beats_a_linear_probe():
    features, labels = two_moons()
    graph = neighbour_graph(features)
    propagated, linear, headed = [], [], []
    for seed in range(4):
        random = np.random.default_rng(seed)
        labelled = np.array([random.choice(np.flatnonzero(labels == c)) for c in (0, 1)])
        predicted = propagated_probabilities(graph, labelled, labels[labelled], 2)
        np.testing.assert_allclose(predicted.sum(1), 1)
        propagated.append((predicted.argmax(1) == labels).mean())
        head, _ = linear_head(features, labelled, labels[labelled], 2, 0)
        linear.append((probabilities(head, features).argmax(1) == labels).mean())
        head = propagation_head(features, graph, labelled, labels[labelled], 2)
        headed.append((probabilities(head, features).argmax(1) == labels).mean())
    assert np.mean(propagated) > 0.95
    assert np.mean(headed) > 0.9
    assert np.mean(headed) > np.mean(linear) + 0.1


def test_a_class_without_labels_gets_probability_0():
    features, labels = clusters(classes=4)
    labelled = np.array([0, 1, 3])
    graph = neighbour_graph(features)
    predicted = propagated_probabilities(graph, labelled, labels[labelled], 4)
    assert predicted.shape == (90, 4) and (predicted[:, 2] == 0).all()
    np.testing.assert_allclose(predicted.sum(1), 1)
    head = propagation_head(features, graph, labelled, labels[labelled], 4)
    assert probabilities(head, features)[:, 2].max() < 1e-6


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_fewer_images_than_features_are_fitted_in_the_space_they_span_with_the_same_result(strength):
    features, labels = clusters(images=30, classes=3, dim=200)
    inputs = scaled(features, "standardised")
    coordinates, basis = probes._span(inputs)
    assert coordinates.shape == (30, 30)
    np.testing.assert_allclose(coordinates @ basis.T, inputs, atol=1e-4)
    inputs = inputs.astype(np.float64)
    model = LogisticRegression(C=strength, max_iter=1000).fit(inputs, labels)
    weight, bias = probes.logistic(inputs, labels, strength, 3)
    np.testing.assert_allclose(
        softmax(inputs @ weight.T + bias, axis=1), model.predict_proba(inputs), atol=1e-3
    )


def test_one_label_for_each_of_many_classes_causes_no_warning(recwarn):
    features, labels = clusters(images=40, classes=20)
    linear_head(features, np.arange(20), labels[:20], 20, 0)
    assert not recwarn.list


def test_labelled_images_keep_their_labels_among_neighbours_of_another_class():
    features, labels = clusters(images=60, std=0.3)
    given = labels[:21].copy()
    given[0] = (given[0] + 1) % 3  # Unlike the labels of its neighbours.
    predicted = propagated_probabilities(neighbour_graph(features), np.arange(21), given, 3)
    assert (predicted[:21] == np.eye(3)[given]).all()
    assert (predicted[21:].argmax(1) == labels[21:]).all()


def test_folds_keep_groups_together():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), random.integers(1, 9, 20))
    labels = np.arange(20)[groups] % 3
    for seed in range(10):
        pairs = folds(labels, seed, groups_L=groups)
        assert len(pairs) == 5
        assert sorted(np.concatenate([held_out for _, held_out in pairs])) == list(range(len(labels)))
        for fitted, held_out in pairs:
            assert not set(groups[fitted]) & set(groups[held_out])
            assert len(np.unique(labels[fitted])) == 3


@pytest.mark.parametrize(
    ("labels", "groups", "count"),
    [
        ([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 2, 3], 0),  # A class of one group.
        ([0, 0, 0, 1, 1, 1], [0, 0, 4, 1, 2, 3], 2),
        ([0, 1, 0, 1], [0, 0, 1, 1], 2),  # Groups of both classes.
        ([0, 1, 0, 1], [0, 0, 0, 0], 0),
        ([0, 0, 1, 1], [5, 6, 7, 8], 2),
    ],
)
def test_folds_of_few_groups(labels, groups, count):
    labels, groups = np.array(labels), np.array(groups)
    pairs = folds(labels, 0, groups_L=groups)
    assert len(pairs) == count
    for fitted, held_out in pairs:
        assert len(np.unique(labels[fitted])) == 2 and not set(groups[fitted]) & set(groups[held_out])
    if len(set(groups.tolist())) == len(groups):
        assert all(
            np.array_equal(a, b)
            for p, q in zip(pairs, folds(labels, 0), strict=True)
            for a, b in zip(p, q, strict=True)
        )


def test_weighted_classes_count_equally():
    """As many copies of a label as make its class as large as the other: the same regression."""
    chance = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 6])
    features = (chance.normal(size=(36, 4)) + labels[:, None]).astype(np.float32)
    copied = np.concatenate([np.arange(36), *[np.arange(30, 36)] * 4])
    assert probes.equal_weights(labels).tolist() == pytest.approx([0.6] * 30 + [3.0] * 6)
    weight, bias = probes.logistic(features, labels, 1.0, 2, probes.equal_weights(labels))
    other, level = probes.logistic(features[copied], labels[copied], 0.6, 2)
    assert weight == pytest.approx(other, abs=2e-3) and bias == pytest.approx(level, abs=2e-3)
    for fewest in (1, None):  # With the usual C and with one that is chosen.
        heads = [
            fitted(features, np.arange(36), labels, 2, 0, fewest)[0]
            for fitted in (linear_head, probes.weighted_head)
        ]
        with torch.no_grad():
            named = [(head(torch.from_numpy(features)).argmax(1) == 1).sum() for head in heads]
        assert named[1] > named[0]
