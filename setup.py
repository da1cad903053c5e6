"""The one compiled part; all else is in setup.cfg. Where there is no C compiler, the install goes on without it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "fmrec_manager._weighted_sum",
            ["fmrec_manager/weighted_sum.c"],
            extra_compile_args=["-O3", "-ffp-contract=off"],
            optional=True,
        )
    ]
)
