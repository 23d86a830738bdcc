"""Names that timm imports."""


class _Dataset:
    pass


CIFAR10 = CIFAR100 = FashionMNIST = ImageFolder = ImageNet = INaturalist = KMNIST = MNIST = _Dataset
Places365 = QMNIST = _Dataset
