//! Login through OpenID Connect providers.
