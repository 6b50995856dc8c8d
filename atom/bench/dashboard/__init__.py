"""The dashboard of the run history: a folder of static pages, built and served."""
