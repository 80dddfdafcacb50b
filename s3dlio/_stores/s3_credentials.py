"""Who asks: the credentials that requests to S3 are signed with, found by awscrt."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import awscrt.auth

from s3dlio import _errors
from s3dlio._stores.s3_settings import Credentials, S3Settings, check_profile


class FunctionFailedError(Exception):
    """The function that was to give the credentials did not."""


def ask_function(function: Callable[[], Credentials]) -> Any:
    """A provider of what a function of the caller's gives now.  Not awscrt's provider for that: it prints what the
    function raises, and tells us nothing of it."""
    try:
        access_key_id, secret_access_key, session_token = function()
        if not isinstance(access_key_id, str) or not isinstance(secret_access_key, str):
            raise TypeError
        return awscrt.auth.AwsCredentialsProvider.new_static(access_key_id, secret_access_key, session_token)
    except BaseException as error:  # of whatever kind: it is raised in a thread of ours
        last = traceback.extract_tb(error.__traceback__)[-1]
        # Not its text, which may hold a secret, nor the error, whose frames do.
        how = f"failed: {type(error).__name__} at {last.filename}:{last.lineno}"
        if last.filename == __file__:
            how = "must return (access key id, secret key, session token or None), and take no argument"
    raise FunctionFailedError(f"the function for credentials {how}")


def provider_of(settings: S3Settings, bootstrap: Any) -> Any:
    provider = awscrt.auth.AwsCredentialsProvider
    if settings.access_key_id:
        return provider.new_static(settings.access_key_id, settings.secret_access_key, settings.session_token)
    if settings.profile:
        check_profile(settings.profile)
        try:
            return provider.new_profile(bootstrap, profile_name=settings.profile)
        except Exception as error:
            text = f"the AWS profile {settings.profile!r} has no credentials that can be used: {error}"
            raise _errors.InvalidInputError(text) from error
    _check_environment()
    if settings.environment_profile and not os.environ.get("AWS_ACCESS_KEY_ID"):
        check_profile(settings.environment_profile)
    if settings.endpoint_url and not any(
        os.environ.get(name)
        for name in (
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        )
    ):
        # The metadata service of EC2 knows nothing of a store of somebody else, and asking takes seconds elsewhere.
        providers = [provider.new_environment()]
        with suppress(Exception):  # there are no such files
            providers.append(provider.new_profile(bootstrap))
        return provider.new_chain(providers)
    return provider.new_default_chain(bootstrap)


def _check_environment() -> None:
    """One without the other would be passed over, for whatever comes next in the chain."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    given = [name for name in names if os.environ.get(name)]
    if len(given) == 1:
        missing = names[1 - names.index(given[0])]
        raise _errors.InvalidInputError(f"{given[0]} is set in the environment, and {missing} is not")
