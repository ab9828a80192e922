"""What all tests share: a machine that is busy, or compiles a first kernel, fails no property test."""

from hypothesis import HealthCheck, settings

settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")
