"""ProxyHead: fast-reid's embedding without its classifier."""

from __future__ import annotations

import pytest
import torch
from fastreid.modeling.heads import EmbeddingHead

from fastreid_ice import InputError
from fastreid_ice.modeling import ProxyHead
from support import osnet_config, small_config


@pytest.mark.parametrize("embedding_dim", [0, 32])
@pytest.mark.parametrize("pool", ["GlobalAvgPool", "GeneralizedMeanPoolingP"])
def test_equals_fast_reids_embedding(embedding_dim: int, pool: str) -> None:
    """With the weights of an EmbeddingHead, found under the same names, it gives the same features."""
    cfg = osnet_config(
        **{"MODEL.HEADS.EMBEDDING_DIM": embedding_dim, "MODEL.HEADS.POOL_LAYER": pool, "MODEL.HEADS.NUM_CLASSES": 5}
    )
    theirs, ours = EmbeddingHead(cfg), ProxyHead(cfg)
    assert ours.load_state_dict(theirs.state_dict(), strict=False).missing_keys == []
    maps = torch.rand(4, 128, 8, 4)
    torch.testing.assert_close(ours.eval()(maps), theirs.eval()(maps))


def test_unknown_pooling_lists_the_known() -> None:
    with pytest.raises(InputError, match="MODEL.HEADS.POOL_LAYER 'Max' must be one of .*GlobalMaxPool"):
        ProxyHead(small_config(**{"MODEL.HEADS.POOL_LAYER": "Max"}))
