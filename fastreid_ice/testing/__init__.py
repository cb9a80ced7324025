"""Whether a loss, a clusterer or a sampler of one's own keeps what training asks of it, as ``check_estimator`` does.

    from fastreid_ice.testing import check_loss

    def test_margin_loss():
        check_loss(MarginLoss)

Each function raises an AssertionError of one sentence that names the class, the check and what was found. They need no
data, no GPU and no pytest. Checks in two processes start these over gloo on the CPU: the class stands at the top level
of a module, and a script that is not run by pytest calls the check under ``if __name__ == "__main__":``.
"""

from .clusterers import check_clusterer
from .losses import check_loss
from .processes import in_processes
from .samplers import check_sampler

__all__ = ["check_clusterer", "check_loss", "check_sampler", "in_processes"]
