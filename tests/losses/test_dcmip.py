"""DCMIP's losses with their memories: against stored runs of published code, or against loops where ours differ.

The reference updates its memories in the backward pass, and fills the instance bank with the online features that the
loss reads. Ours are updated in ``after_step``, and the bank holds the momentum encoder's features, as the paper's
overview shows it. With the same features, both hold the same.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_ice import InputError
from fastreid_ice.config import import_files, merge_config_file
from fastreid_ice.core import Clusters, ImageTable, discrepant_proxy_loss
from fastreid_ice.losses import UPDATE_REGISTRY, DiscrepantProxyLoss, MultiInstanceLoss, Step, build_losses
from golden import load_golden
from support import small_config

MEMORIES = ["easy", "pk4", "pk16", "uneven"]
VARIANTS = {
    "cc_plain": ("cc_plain_mem", {"updates": ("each",)}),
    "cc_hard": ("cc_hard_mem", {"updates": ("hardest",)}),
    "cm": ("cm_mem", {"updates": ("each",)}),
    "hybrid_every": ("hybrid_every_mem", {"updates": ("each", "mean"), "margins": (0.2, 0.0)}),
    "hybrid_hardest": ("hybrid_hardest_mem", {"updates": ("hardest", "mean"), "margins": (0.2, 0.0)}),
    "cmhard_enc": ("cmhard_mem_cluster", {"updates": ("each", "mean"), "margins": (0.2, 0.0)}),
}
PRECISIONS = pytest.mark.parametrize("suffix", ["", "_f64"])


def load(name: str, suffix: str) -> dict[str, Tensor]:
    """The arrays of a file in the precision of ``suffix``, which is removed from the names of expected values."""
    dtype = torch.float64 if suffix else torch.float32
    arrays = {key: torch.as_tensor(value) for key, value in load_golden(f"dcmip_memory_{name}").items()}
    arrays |= {key.removesuffix("_f64"): value for key, value in arrays.items() if suffix and key.endswith("_f64")}
    return {
        key: value.to(dtype) if value.is_floating_point() and value.dim() > 1 else value
        for key, value in arrays.items()
    }


def make_step(labels: Tensor, online: Tensor, momentum: Tensor | None = None) -> Step:
    return Step(labels, torch.zeros_like(labels), torch.arange(len(labels)), online, momentum)


def start(loss: MultiInstanceLoss, members: Tensor) -> None:
    """Begins an epoch with clusters of these (C, K, D) momentum features; the clustered features are different."""
    labels = torch.arange(len(members)).repeat_interleave(members.shape[1])
    features = F.normalize(torch.randn_like(members.flatten(0, 1)))
    loss.begin_epoch(Clusters(labels, features, ImageTable(torch.zeros_like(labels)), members.flatten(0, 1)))


def by_slot(bank: Tensor) -> Tensor:
    """A bank, (C, K, D), with the instances of each cluster sorted; the loss does not depend on their order."""
    return torch.stack([rows[rows[:, 0].argsort()] for rows in bank])


def check(value: Tensor, features: Tensor, loss: Tensor, gradient: Tensor, exact: bool) -> None:
    """Compares the loss and its gradient with respect to ``features`` within the tolerance of the precision."""
    (found,) = torch.autograd.grad(value, features)
    assert value.item() == pytest.approx(loss.item(), rel=1e-9 if exact else 1e-5, abs=1e-9 if exact else 1e-6)
    limit = 1e-9 if exact else 1e-4 * gradient.abs().max().item() + 1e-6
    torch.testing.assert_close(found, gradient, rtol=0, atol=limit)


@PRECISIONS
@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_discrepant_proxies_follow_the_reference(name: str, variant: str, suffix: str) -> None:
    """Loss, gradient and memory of every pass, each starting from the memory after the passes before."""
    golden = load(name, suffix)
    memory, options = VARIANTS[variant]
    term = DiscrepantProxyLoss(temperature=golden["temp"].item(), momentum=golden["momentum"].item(), **options)
    rows = golden["init_hybrid"][: len(options["updates"]) * len(golden["init_uni"])]
    term.remember("proxies", rows.unflatten(0, (len(options["updates"]), -1)))
    for t, (online, labels) in enumerate(zip(golden["inputs"], golden["targets"], strict=True)):
        step = make_step(labels, online.clone().requires_grad_())
        if f"{variant}_ce_first" in golden:
            for half, diagnostic in enumerate(("first", "second")):
                alone = discrepant_proxy_loss(online, term.proxies[half : half + 1], labels)
                assert alone.item() == pytest.approx(golden[f"{variant}_ce_{diagnostic}"][t].item(), rel=1e-5, abs=1e-6)
        check(term(step), step.online, golden[f"{variant}_loss"][t], golden[f"{variant}_grad"][t], bool(suffix))
        term.after_step(step)
        torch.testing.assert_close(term.proxies.flatten(0, 1), golden[memory][t], rtol=0, atol=1e-9 if suffix else 2e-6)


@PRECISIONS
@pytest.mark.parametrize("name", MEMORIES)
def test_multi_instance_follows_the_reference(name: str, suffix: str) -> None:
    """The instance part and the sum of both, if the bank gets the rows that the reference has drawn.

    With exactly K rows per cluster in a batch, only the slot of each is random.
    """
    golden = load(name, suffix)
    num_clusters, num_instances = int(golden["num_clusters"]), int(golden["num_instances"])
    options = {"temperature": golden["temp"].item()}
    momentum = golden["momentum"].item()
    proxies = DiscrepantProxyLoss(updates=("each", "mean"), margins=(0.2, 0.0), momentum=momentum, **options)
    proxies.remember("proxies", golden["init_hybrid"].unflatten(0, (2, -1)))
    instances = MultiInstanceLoss(num_instances=num_instances, **options)
    bank = golden["init_instance"].unflatten(0, (num_instances, num_clusters)).transpose(0, 1)
    start(instances, bank)
    torch.testing.assert_close(by_slot(instances.bank), by_slot(bank), rtol=0, atol=1e-6)
    instances.remember("bank", bank.clone())  # exactly these rows, which have unit length only in float32
    for t, (online, labels) in enumerate(zip(golden["inputs"], golden["targets"], strict=True)):
        step = make_step(labels, online.clone().requires_grad_())
        for term, loss in (
            (instances(step), "cmhard_ema"),
            (proxies(step), "cmhard_enc"),
            (proxies(step) + instances(step), "cmhard"),
        ):
            check(term, step.online, golden[f"{loss}_loss"][t], golden[f"{loss}_grad"][t], bool(suffix))
        picked = []
        for k, picks in zip(golden["cmhard_class_order"][t].tolist(), golden["cmhard_picks"][t], strict=True):
            if k >= 0:
                picked.append((labels == k).nonzero()[:, 0][picks])
        rows = torch.cat(picked)
        instances.after_step(make_step(labels[rows], torch.zeros_like(online[rows]), online[rows]))
        proxies.after_step(step)
        expected = golden["cmhard_mem_instance"][t].unflatten(0, (num_instances, num_clusters)).transpose(0, 1)
        limit = 1e-9 if suffix else 2e-6
        torch.testing.assert_close(by_slot(instances.bank), by_slot(expected), rtol=0, atol=limit)
        if name == "pk16":  # sixteen of each cluster in the batch, sixteen slots: the batch as it is
            plain = copy.deepcopy(instances)
            plain.after_step(make_step(labels, torch.zeros_like(online), online))
            torch.testing.assert_close(by_slot(plain.bank), by_slot(expected), rtol=0, atol=limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["init_a", "init_b"])
def test_memories_start_like_the_reference(name: str, dtype: torch.dtype) -> None:
    """Proxies from the clustered features, the bank from the momentum features of members."""
    golden = load(name, "")
    features, momentum, labels = golden["features"].to(dtype), golden["features_ema"].to(dtype), golden["labels"]
    clusters = Clusters(labels, features, ImageTable(torch.zeros_like(labels)), momentum)
    proxies = DiscrepantProxyLoss()
    proxies.begin_epoch(clusters)
    torch.testing.assert_close(proxies.proxies.flatten(0, 1), golden["cluster_memory"].to(dtype), rtol=0, atol=1e-6)

    num_clusters, num_instances = int(golden["num_clusters"]), int(golden["num_instances"])
    expected = golden["instance_memory"].to(dtype).unflatten(0, (num_instances, num_clusters)).transpose(0, 1)
    instances = MultiInstanceLoss(num_instances=num_instances)
    start(instances, momentum[golden["picked_index"]])
    torch.testing.assert_close(by_slot(instances.bank), by_slot(expected), rtol=0, atol=1e-6)

    # The reference draws with repetition from clusters of any size; by default ours repeats only if necessary.
    instances.begin_epoch(clusters)
    for k, rows in enumerate(instances.bank):
        members = F.normalize(momentum[labels == k])
        same = torch.isclose(rows[:, None], members, atol=1e-6).all(2)
        assert same.sum(1).tolist() == [1] * num_instances, "every instance is one member"
        drawn = same.sum(0)
        assert drawn.max() - drawn.min() <= 1 and (drawn > 0).sum() == min(len(members), num_instances)
        if len(members) <= num_instances:
            assert torch.isclose(expected[k][:, None], rows, atol=1e-6).all(2).any(1).all()


def loop_bank(bank: Tensor, momentum: Tensor, labels: Tensor) -> Tensor:
    """The bank after a batch with as many rows of each of its clusters as the bank has slots."""
    bank = bank.clone()
    for k in labels.unique().tolist():
        bank[k] = torch.stack([row / row.norm() for row in momentum[labels == k]])
    return bank


def loop_loss(online: Tensor, momentum: Tensor, bank: Tensor, labels: Tensor, positive: str) -> Tensor:
    """L_MIP query by query."""
    losses = []
    for query, label in zip(online, labels.tolist(), strict=True):
        query = query / query.norm()
        own = bank[label] if positive == "bank" else [row / row.norm() for row in momentum[labels == label]]
        logits = [min(query @ x for x in own) / 0.05]
        logits += [max(query @ x for x in bank[k]) / 0.05 for k in range(len(bank)) if k != label]
        losses.append(torch.logsumexp(torch.stack(logits), 0) - logits[0])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("positive", ["bank", "batch"])
@pytest.mark.parametrize("store", ["momentum", "online"])
def test_bank_holds_the_features_of_the_last_batch(positive: str, store: str) -> None:
    """Three steps against a loop: online features are queries, those of `store` replace the cluster's rows."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    term = MultiInstanceLoss(num_instances=3, positive=positive, store=store)
    start(term, F.normalize(draw(5, 3, 7), dim=2))
    bank = term.bank.clone()
    for present in ([0, 2], [2, 4], [1, 2]):
        labels = torch.tensor(present).repeat(3)
        online, momentum = 3 * draw(6, 7), 3 * draw(6, 7)
        step = make_step(labels, online.clone().requires_grad_(), momentum)
        expected = loop_loss(online.requires_grad_(), momentum, bank, labels, positive)
        check(term(step), step.online, expected, torch.autograd.grad(expected, online)[0], exact=True)
        term.after_step(step)
        bank = loop_bank(bank, momentum if store == "momentum" else online.detach(), labels)
        torch.testing.assert_close(by_slot(term.bank), by_slot(bank))


def test_bank_starts_from_the_clustered_features_where_those_are_the_momentum_ones() -> None:
    features = F.normalize(torch.randn(12, 5))
    labels = torch.arange(12) // 3
    term = MultiInstanceLoss(num_instances=3)
    term.begin_epoch(Clusters(labels, features, ImageTable(torch.zeros_like(labels))))
    torch.testing.assert_close(by_slot(term.bank), by_slot(features.unflatten(0, (4, 3))))


def test_bank_may_start_with_repetition_from_clusters_of_any_size() -> None:
    """As in the published code: K independent draws, so that a member is missing with probability (1 - 1/n)^K."""
    features, labels = F.normalize(torch.randn(4000, 16)), torch.arange(4000) // 4
    term = MultiInstanceLoss(num_instances=4, repetition="always")
    term.begin_epoch(Clusters(labels, features, ImageTable(torch.zeros_like(labels))))
    members = features.unflatten(0, (1000, 4))
    same = torch.isclose(term.bank[:, :, None], members[:, None], atol=1e-6).all(3)
    assert torch.equal(same.sum(2), torch.ones(1000, 4, dtype=torch.int64)), "every instance is one member"
    missing = (~same.any(1)).double().mean().item()
    assert missing == pytest.approx(0.75**4, abs=0.03)


def terms() -> list[DiscrepantProxyLoss | MultiInstanceLoss]:
    return [
        DiscrepantProxyLoss(updates=("hardest", "mean", "each"), margins=(0.2, 0.0, 0.1)),
        MultiInstanceLoss(num_instances=4),
        MultiInstanceLoss(num_instances=4, positive="batch"),
    ]


BATCHES = {
    "one cluster": ([0] * 12, [0] * 8),
    "clusters with fewer members than instances": (
        [0, 1, 1, 2, 2, 2, -1, -1, -1, -1, -1, -1],
        [0, 0, 0, 0, 1, 1, 2, 2],
    ),
    "a class absent from the batch": ([0, 1, 2, 3] * 3, [1, 1, 1, 1, 3, 3, 3, 3]),
    "unequal class counts": ([0, 1, 2, 3] * 3, [0, 1, 1, 1, 1, 1, 1, 3]),
    "one image each": (list(range(12)), list(range(8))),
}


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("case", list(BATCHES))
def test_edges(case: str, index: int) -> None:
    """A finite loss and gradient, unit rows, updated memories of the batch's clusters, and unchanged others."""
    labels, batch = map(torch.tensor, BATCHES[case])
    generator = torch.Generator().manual_seed(0)
    features, momentum = F.normalize(torch.randn(2, 12, 6, generator=generator), dim=2)
    term = terms()[index]
    term.begin_epoch(Clusters(labels, features, ImageTable(torch.zeros_like(labels)), momentum))
    online, keys = torch.randn(2, 8, 6, generator=generator)
    step = make_step(batch, online.requires_grad_(), keys)
    loss = term(step)
    loss.backward()
    assert loss.isfinite() and step.online.grad.isfinite().all()
    if case == "one cluster":
        assert loss == 0 and not step.online.grad.any(), "nothing to distinguish"
    ((_, buffer),) = term.named_buffers()
    before = buffer.clone()
    term.after_step(step)
    ((_, buffer),) = term.named_buffers()
    torch.testing.assert_close(buffer.norm(dim=-1), torch.ones(buffer.shape[:-1]))
    moved = (buffer != before).flatten(2).any(2)
    moved = moved.any(0) if isinstance(term, DiscrepantProxyLoss) else moved.any(1)
    assert moved.nonzero()[:, 0].tolist() == sorted(set(batch.tolist()))
    assert term(step).isfinite()


def test_replacement_takes_every_member_or_as_many_as_fit() -> None:
    """Of three rows all are kept and one is repeated, of four each is kept once, of six four different ones."""
    term = MultiInstanceLoss(num_instances=4)
    start(term, F.normalize(torch.randn(3, 4, 8), dim=2))
    labels = torch.tensor([0] * 3 + [1] * 4 + [2] * 6)[torch.randperm(13)]
    momentum = torch.eye(13)[:, :8] + 0.1 * torch.randn(13, 8)
    term.after_step(make_step(labels, torch.randn(13, 8), momentum))
    for k, times in enumerate(([1, 1, 2], [1, 1, 1, 1], [0, 0, 1, 1, 1, 1])):
        rows = F.normalize(momentum[labels == k])
        assert sorted(torch.isclose(term.bank[k][:, None], rows).all(2).sum(0).tolist()) == times


@pytest.mark.parametrize("index", range(3))
def test_half_precision_features(index: int) -> None:
    """As in mixed precision: memories stay float32."""
    labels = torch.arange(12) % 3
    term = terms()[index]
    features = F.normalize(torch.randn(12, 6))
    term.begin_epoch(Clusters(labels, features, ImageTable(labels), features))
    online, momentum = torch.randn(2, 12, 6)
    exact = term(make_step(labels, online, momentum))
    step = make_step(labels, online.half().requires_grad_(), momentum.half())
    loss = term(step)
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02, abs=0.02)
    term.after_step(step)
    assert all(buffer.dtype == torch.float32 for buffer in term.buffers())


def test_a_further_update_design_is_a_function_and_a_word(tmp_path: Path) -> None:
    """In your own file, which a config imports."""
    (tmp_path / "last_update.py").write_text(
        """
import torch.nn.functional as F
from fastreid_ice.losses import UPDATE_REGISTRY

def update_last(proxies, features, labels, *, momentum):
    proxies = proxies.clone()
    proxies[labels[-1]] = F.normalize(momentum * proxies[labels[-1]] + (1 - momentum) * features[-1], dim=0)
    return proxies

UPDATE_REGISTRY["last"] = update_last
"""
    )
    (tmp_path / "last.yml").write_text(
        """
_BASE_: dcmip_demo.yml
IMPORTS: ["last_update.py"]
MODEL: {LOSSES: {DISCREPANT_PROXY: {UPDATES: ["mean", "last"]}}}
"""
    )
    cfg = small_config()
    merge_config_file(cfg, str(tmp_path / "last.yml"))
    with pytest.raises(InputError, match=r"UPDATES \('mean', 'last'\) must be"):
        build_losses(cfg)
    try:
        import_files(cfg.IMPORTS)
        term = build_losses(cfg)["loss_discrepant_proxy"]
    finally:
        UPDATE_REGISTRY.pop("last", None)
        sys.modules.pop("last_update", None)
    labels = torch.arange(12) % 3
    term.begin_epoch(Clusters(labels, F.normalize(torch.randn(12, 6)), ImageTable(labels)))
    before = term.proxies[1].clone()
    step = make_step(torch.tensor([0, 1, 1]), F.normalize(torch.randn(3, 6)))
    term.after_step(step)
    torch.testing.assert_close(term.proxies[1, 1], F.normalize(0.1 * before[1] + 0.9 * step.online[2], dim=0))
    assert torch.equal(term.proxies[1, 0], before[0])


def test_cluster_contrast_is_a_config() -> None:
    cfg = small_config(**{"MODEL.LOSSES.NAME": ("DiscrepantProxyLoss",)})
    cfg.MODEL.LOSSES.DISCREPANT_PROXY.UPDATES = ("each",)
    term = build_losses(cfg)["loss_discrepant_proxy"]
    labels = torch.arange(12) % 3
    term.begin_epoch(Clusters(labels, F.normalize(torch.randn(12, 6)), ImageTable(labels)))
    step = make_step(labels, torch.randn(12, 6))
    logits = F.normalize(step.online) @ term.proxies[0].T / 0.05
    torch.testing.assert_close(term(step), F.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "DISCREPANT_PROXY.UPDATES",
            ("mean", "softest"),
            r"UPDATES \('mean', 'softest'\) must be .*each, hardest, mean",
        ),
        ("DISCREPANT_PROXY.UPDATES", (), r"UPDATES \(\) must be one or more of"),
        ("DISCREPANT_PROXY.MARGINS", (0.2,), r"MARGINS \(0.2,\) must hold a number from 0 for each of the UPDATES"),
        ("DISCREPANT_PROXY.MARGINS", (0.2, -0.1), "MARGINS .* must hold a number from 0"),
        ("DISCREPANT_PROXY.MARGINS", (0.2, "small"), "MARGINS .* must hold a number from 0"),
        ("DISCREPANT_PROXY.MOMENTUM", 1.5, r"MOMENTUM 1.5 must lie in \[0, 1\]"),
        ("MULTI_INSTANCE.NUM_INSTANCES", 0, "NUM_INSTANCES 0 must be at least 1"),
        ("MULTI_INSTANCE.POSITIVE", "queue", "POSITIVE 'queue' must be 'bank' or 'batch'"),
    ],
)
def test_bad_config_is_named(key: str, value: object, message: str) -> None:
    cfg = small_config(**{"MODEL.LOSSES.NAME": ("DiscrepantProxyLoss", "MultiInstanceLoss")})
    cfg.merge_from_list([f"MODEL.LOSSES.{key}", value])
    with pytest.raises(InputError, match=f"MODEL.LOSSES.{key.split('.')[0]}: {message}"):
        build_losses(cfg)
