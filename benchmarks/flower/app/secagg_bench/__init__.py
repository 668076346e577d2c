"""One round of SecAgg+ without training, as an app of Flower."""
