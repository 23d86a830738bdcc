"""Names that timm imports."""
