"""Take values out of running code, and keep them as nobody else can change them."""
