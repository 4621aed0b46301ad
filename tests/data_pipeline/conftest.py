"""Settings of the property tests."""

from hypothesis import settings

settings.register_profile("surefoot", deadline=None)
settings.load_profile("surefoot")
