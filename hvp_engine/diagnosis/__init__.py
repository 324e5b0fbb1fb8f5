"""The parts of :func:`hvp_engine.doctor`: what is looked at before hours of work, and how it is reported."""
