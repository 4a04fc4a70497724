"""Every released schema and the steps between them."""
