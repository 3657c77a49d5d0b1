"""Which of torch's layers, activations and losses become plans, each trained for three steps beside eager torch."""
