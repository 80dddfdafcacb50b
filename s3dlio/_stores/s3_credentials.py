"""Who asks: the credentials that requests to S3 are signed with, found by awscrt."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import awscrt.auth

from s3dlio import _errors
from s3dlio._logging import logger
from s3dlio._stores.s3_settings import S3Settings


def provider_of(settings: S3Settings, bootstrap: Any) -> Any:
    provider = awscrt.auth.AwsCredentialsProvider
    if settings.credentials is not None:
        own = settings.credentials

        def delegate() -> Any:
            try:
                return awscrt.auth.AwsCredentials(*own())
            except Exception as error:  # its text may hold a secret, and would be printed
                logger.error("the function for credentials failed: %s", type(error).__name__)
                raise RuntimeError(f"the function for credentials failed: {type(error).__name__}") from None

        return provider.new_delegate(delegate)
    if settings.access_key_id:
        return provider.new_static(settings.access_key_id, settings.secret_access_key, settings.session_token)
    if settings.profile:
        try:
            return provider.new_profile(bootstrap, profile_name=settings.profile)
        except Exception as error:
            raise _errors.InvalidInputError(f"the AWS profile {settings.profile!r} cannot be used: {error}") from error
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
