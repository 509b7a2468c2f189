"""Views, one module for each part of the console; each names its routes."""
