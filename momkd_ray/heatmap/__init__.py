"""Maps of what a model makes of each patch, over the slide: pictures, GeoJSON for QuPath, CSV, cut-out tiles."""
