"""Train the small classifiers whose hidden layer is a feature space for evaluation.

    python benchmarks/tools/train_classifier.py digits
    python benchmarks/tools/train_classifier.py digits_residual --data digits --seed 1
    FILES=/usr/share/datasets/fashion-mnist
    python benchmarks/tools/train_classifier.py fashion-mnist --data idx:$FILES
    python benchmarks/tools/train_classifier.py fashion-mnist_residual --data idx:$FILES --seed 1

One image in ten is held out; the accuracy on those is printed. Weights are kept in float16 (under 1 MB).
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from progdist.data.sources import load_images
from progdist.evaluation.networks.classifier import CLASSIFIERS

FOLDER = Path(__file__).parents[2] / "src" / "progdist" / "evaluation" / "networks" / "classifiers"


def main() -> None:
    """Train, print the held-out accuracy, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(CLASSIFIERS))
    parser.add_argument("--data", help="a data source; by default that of the name")
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    data = load_images(arguments.data or arguments.name)
    images, labels = data.sample(len(data), seed=0)
    held_out = torch.arange(len(images)) % 10 == 0
    network = CLASSIFIERS[arguments.name].network(data.shape, len(data.classes))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.updates)
    training = torch.nonzero(~held_out).squeeze(1)
    for _ in range(arguments.updates):
        chosen = training[torch.randint(len(training), (128,))]
        loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        hidden = torch.cat([network.hidden(part) for part in images[training].split(4096)])
        network.scale = hidden.square().mean().rsqrt()
        accuracy = (network(images[held_out]).argmax(1) == labels[held_out]).float().mean()
    path = FOLDER / f"{arguments.name}.safetensors"
    save_file({name: tensor.half() for name, tensor in network.state_dict().items()}, path)
    print(f"held-out accuracy {accuracy:.4f}; {path.name}: {path.stat().st_size / 1e6:.3f} MB")


if __name__ == "__main__":
    main()
