//! Completion files for bash, zsh and fish, made of the table of verbs.

use clap::{Arg, ArgAction, Command};

use crate::verbs;

/// What options of one letter are called inside of clap, which wants text that lasts.
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

fn letter(short: char) -> Option<&'static str> {
    let at = LETTERS.find(short)?;
    LETTERS.get(at..=at)
}

/// The file for one shell. `options`: the program's own.
pub fn file(shell: clap_complete::Shell, options: Command) -> Vec<u8> {
    let own = options.get_arguments().filter(|argument| !argument.is_positional()).cloned().collect::<Vec<Arg>>();
    let mut command = Command::new("zkcli").args(own).disable_help_subcommand(true);
    for verb in verbs::all() {
        let mut one = Command::new(verb.name).about(verb.about).disable_help_flag(true);
        for option in verb.options {
            let Some(id) = option.long.or_else(|| letter(option.short?)) else { continue };
            let action = if option.value.is_some() { ArgAction::Append } else { ArgAction::Count };
            let mut argument = Arg::new(id).help(option.about).action(action);
            if let Some(short) = option.short {
                argument = argument.short(short);
            }
            if let Some(long) = option.long {
                argument = argument.long(long);
            }
            if let Some(value) = option.value {
                argument = argument.value_name(value);
            }
            one = one.arg(argument);
        }
        if verb.name == "help" {
            let names: Vec<&str> = verbs::all().into_iter().map(|verb| verb.name).collect();
            one = one.arg(Arg::new("verb").value_parser(clap::builder::PossibleValuesParser::new(names)));
        }
        command = command.subcommand(one);
    }
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "zkcli", &mut text);
    text
}
