"""Checks for losses, clusterers and samplers of your own, like scikit-learn's ``check_estimator``.

    from fastreid_ice.testing import check_loss

    def test_margin_loss():
        check_loss(MarginLoss)

A failed check raises an AssertionError. Its one sentence names the class, the check and what is wrong. The checks need
no data, no GPU and no pytest. Some of them start two processes, over gloo on the CPU. For these, define the class at
the top level of a module; a script that pytest does not run calls the check under ``if __name__ == "__main__":``.
"""

from .clusterers import check_clusterer
from .losses import check_loss
from .processes import in_processes
from .samplers import check_sampler

__all__ = ["check_clusterer", "check_loss", "check_sampler", "in_processes"]
