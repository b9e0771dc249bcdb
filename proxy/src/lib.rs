//! The proxy: routes by server name and moves bytes it cannot read
