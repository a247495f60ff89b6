"""What a student learns: methods, the chain, stage 0, guidance; imports torch alone."""

from progdist.methods.adversarial import ADVERSARIAL
from progdist.methods.balanced import BALANCED
from progdist.methods.method import Method
from progdist.methods.progressive import PROGRESSIVE
from progdist.methods.stochastic import STOCHASTIC
from progdist.methods.transitive import TRANSITIVE

METHODS: dict[str, Method] = {
    method.name: method for method in (PROGRESSIVE, BALANCED, ADVERSARIAL, STOCHASTIC, TRANSITIVE)
}
"""Every method by its name: the one list that recipes, commands, cards, estimates and reports read."""

__all__ = ["ADVERSARIAL", "BALANCED", "METHODS", "PROGRESSIVE", "STOCHASTIC", "TRANSITIVE", "Method"]
