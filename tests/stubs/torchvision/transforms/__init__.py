"""Names that timm imports."""


class ToTensor:
    pass
