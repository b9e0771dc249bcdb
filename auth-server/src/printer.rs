//! The only place that writes to standard output and standard error.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use crate::config::Config;
use iap_identity::Pin;

/// The configuration can be used.
pub fn configuration_is_good(config: &Config) {
    println!("the configuration of {} is good", config.cluster);
}

/// Why the program ends.
pub fn failure(error: &dyn std::fmt::Display) {
    eprintln!("iap-auth: {error}");
}

/// A join token, alone on its line, for `> FILE`.
pub fn token(token: &str) {
    println!("{token}");
}

/// After the first start: what to trust, and how to get the first admin.
pub fn first_start(config: &Config, pin: &Pin) {
    println!(
        "A new cluster, {}, was made in {}.",
        config.cluster,
        config.data_dir.display()
    );
    println!();
    println!("  its CA pin:  {pin}");
    println!();
    println!("The first proxy joins with a token, in a file that nobody else may read. Here, as");
    println!("this user:");
    println!();
    println!("  (umask 077; iap-auth token proxy --config FILE > proxy.token)");
    println!();
    println!("On the proxy's host, as the user it will run as:");
    println!();
    println!(
        "  iap-proxy join --config FILE --auth HOST:{} --token-file proxy.token",
        config.listen.port()
    );
    println!();
    if config.bootstrap_admins.is_empty() {
        println!("It has no administrator yet. Name yourself in the configuration and restart:");
        println!();
        println!("  [bootstrap]");
        println!("  admins = [\"you@example.com\"]");
        println!();
        println!("Then log in:");
    } else {
        let admins: Vec<&str> = config.bootstrap_admins.iter().map(String::as_str).collect();
        println!(
            "Its first administrators are {}. Each of them logs in with:",
            admins.join(", ")
        );
    }
    println!();
    println!("  iapctl login {} --ca {pin}", config.public_address);
    println!();
}
