"""Train a network of one's own on a distilled set, in plain PyTorch, and test it once.

    python examples/train_on_a_set.py demo/distilled.safetensors digits

The second argument is the data, loaded as it was for the distillation: the test part is then in the
space of the set. The learned learning rate belongs to the set: others do worse.
"""

import sys

import torch
from torch import nn

import iadd_fast

distilled = iadd_fast.DistilledSet.load(sys.argv[1])
test = iadd_fast.load_data(sys.argv[2]).test
assert test is not None
loader = torch.utils.data.DataLoader(distilled.as_dataset(), batch_size=256, shuffle=True)


def block(channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, 32, 3, padding=1)
    return [convolution, nn.GroupNorm(32, 32), nn.ReLU(), nn.AvgPool2d(2)]


torch.manual_seed(0)
features = nn.Sequential(*block(distilled.images.shape[1]), *block(32), nn.Flatten())
values = features(distilled.images[:1]).shape[1]
network = nn.Sequential(features, nn.Linear(values, distilled.num_classes))
sgd = torch.optim.SGD(network.parameters(), lr=distilled.lr, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, [150])
for _ in range(300):
    for images, labels in loader:  # hard labels or probabilities: the loss takes both
        sgd.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        sgd.step()
    schedule.step()
with torch.no_grad():
    right = network(test.images).argmax(1) == test.labels
print(f"accuracy on the test part: {100 * right.float().mean():.1f} %")
