"""What a slide is to the network: a bag of patch features and its graph, read, stored and streamed."""
