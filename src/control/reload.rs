//! What a new config changes: a pure comparison of the file as it was, what is in force, and the file as it is now.

use crate::config::{Config, DataPath, Percent};

/// What is to be done to go over to a new config.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    /// The new config, with the canary percents that are to be in force.
    pub(super) config: Config,
    /// Where the file's data path or its share changed.
    pub(super) data_path: Option<(DataPath, Percent)>,
}

/// Compares. `file` is the config as it was last read, `running` what is in force, `new` what was just read.
///
/// The last change wins: the percent of a listener is taken from the file where the file's value changed, and left as
/// an operator set it where it did not. The same holds for the data path.
pub(super) fn plan(file: &Config, running: &Config, new: &Config) -> Plan {
    let mut config = new.clone();
    for listener in &mut config.listeners {
        let named = |of: &Config| of.listeners.iter().find(|l| l.name == listener.name).cloned();
        if let (Some(was), Some(runs), Some(_)) = (named(file), named(running), listener.canary)
            && was.canary_percent == listener.canary_percent
            && was.canary.is_some()
        {
            listener.canary_percent = runs.canary_percent;
        }
        if listener.canary.is_none() {
            listener.canary_percent = Percent::ZERO;
        }
    }
    let of = |c: &Config| (c.data_path, c.data_path_percent);
    let data_path = (of(file) != of(new)).then_some(of(new));
    // What waits for a restart stays as it is: `changes` names it.
    config.shards.napi_busy_poll_us = running.shards.napi_busy_poll_us;
    config.shards.fifo_priority = running.shards.fifo_priority;
    config.shards.steer = running.shards.steer;
    config.admin.clone_from(&running.admin);
    (config.log.format, config.log.level) = (running.log.format, running.log.level);
    config.limits.buffer_bytes = running.limits.buffer_bytes;
    config.limits.buffers_per_shard = running.limits.buffers_per_shard;
    Plan { config, data_path }
}

/// What becomes of the canary percents, a sentence for each listener whose share changes.
pub(super) fn canaries(running: &Config, new: &Config) -> Vec<String> {
    let changed = new.listeners.iter().filter_map(|listener| {
        let before = running.listeners.iter().find(|l| l.name == listener.name)?;
        let (from, to) = (before.canary_percent, listener.canary_percent);
        (from != to).then(|| format!("canary of `{}`: {from} % -> {to} %", listener.name))
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;

    fn config(path: &str, percent: &str, more: &str) -> Config {
        parse(&format!(
            "data_path = \"{path}\"\n{more}\n\
             [listeners.l]\nbind = \"127.0.0.1:7000\"\nstable = \"a\"\ncanary = \"b\"\n\
             canary_percent = {percent}\n\
             [pools.a]\nbackends = [\"127.0.0.1:1\"]\n[pools.b]\nbackends = [\"127.0.0.1:2\"]\n"
        ))
        .unwrap()
    }

    fn percent(plan: &Plan) -> f64 {
        plan.config.listeners[0].canary_percent.as_f64()
    }

    #[test]
    fn the_last_change_of_the_percent_wins() {
        let file = config("auto", "5", "");
        let operator = config("auto", "10", "");
        assert_eq!(percent(&plan(&file, &operator, &config("auto", "5", ""))), 10.0);
        assert_eq!(percent(&plan(&file, &operator, &config("auto", "25", ""))), 25.0);
    }

    #[test]
    fn a_changed_percent_is_told() {
        let file = config("auto", "5", "");
        assert_eq!(canaries(&file, &file), Vec::<String>::new());
        let told = canaries(&file, &config("auto", "25", ""));
        assert_eq!(told, ["canary of `l`: 5.00 % -> 25.00 %"]);
    }

    #[test]
    fn the_data_path_changes_only_where_the_file_does() {
        let file = config("auto", "5", "");
        assert_eq!(plan(&file, &file, &config("auto", "5", "")).data_path, None);
        let new = config("epoll", "5", "");
        let all = |path| Some((path, Percent::HUNDRED));
        assert_eq!(plan(&file, &file, &new).data_path, all(DataPath::Epoll));
        let tenth = config("auto", "5", "data_path_percent = 10");
        let percent = Percent::from_f64(10.0).unwrap();
        assert_eq!(plan(&file, &file, &tenth).data_path, Some((DataPath::Auto, percent)));
        assert_eq!(plan(&tenth, &file, &tenth).data_path, None, "an operator's share stays");
    }

    #[test]
    fn the_shards_change_at_once() {
        let file = config("auto", "5", "");
        let more = "[shards]\ncount = 7\npin = false\ncpus = \"0\"\nbusy_poll_us = 3";
        let new = config("auto", "5", more);
        let plan = plan(&file, &file, &new);
        assert_eq!(plan.config.shards, new.shards);
    }

    #[test]
    fn what_cannot_change_now_is_kept() {
        let file = config("auto", "5", "");
        let new = config("auto", "5", "[limits]\nbuffer_bytes = 4096\n[log]\nlevel = \"debug\"");
        let plan = plan(&file, &file, &new);
        assert_eq!(plan.config.log.level, file.log.level);
        assert_eq!(plan.config.limits.buffer_bytes, file.limits.buffer_bytes);
    }
}
