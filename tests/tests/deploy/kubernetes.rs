//! `deploy/kubernetes`: each overlay is rendered by kustomize and compared with the schemas of Kubernetes and with what a
//! careful cluster asks for; the configuration in it is read by the agent.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use kernmeter_tests::settings::TempDir;
use kernmeter_tests::{Outcome, agent, skip};
use serde_json::{Value, json};

use super::tool;

kernmeter_tests::trials!(
    manifests_fit_the_schemas,
    manifests_ask_for_no_more_than_needed,
    the_privileged_overlay_is_the_only_privileged_one,
    a_component_replaces_the_seccomp_profile,
    configuration_is_valid
);

const OVERLAYS: [&str; 3] = ["plain", "prometheus-operator", "privileged"];
/// Kinds that Kubernetes itself has no schema for.
const FOREIGN: &str = "PodMonitor";
const LABELS: [&str; 6] = ["name", "instance", "version", "component", "part-of", "managed-by"];

fn kubernetes() -> PathBuf {
    tool::deploy().join("kubernetes")
}

fn parse(yaml: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(yaml).context("not YAML")
}

/// The `DaemonSet` as it is written.
///
/// # Errors
/// When the file cannot be read.
pub fn daemon_set() -> Result<Value> {
    let path = kubernetes().join("base/daemonset.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let [daemon_set] = parse(&text)?.try_into().map_err(|_| anyhow::anyhow!("not one document"))?;
    Ok(daemon_set)
}

fn build(folder: &Path) -> Result<String> {
    // Either brings kustomize.
    let (program, subcommand) = match tool::find("kustomize") {
        Ok(kustomize) => (kustomize, "build"),
        Err(_) => (tool::find("kubectl")?, "kustomize"),
    };
    let mut command = Command::new(program);
    command.arg(subcommand);
    Ok(tool::run(command.arg(folder))?.0)
}

fn overlay(name: &str) -> Result<String> {
    build(&kubernetes().join("overlays").join(name))
}

fn find<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind).with_context(|| format!("no {kind}"))
}

fn manifests_fit_the_schemas() -> Outcome {
    let own =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/kubernetes-validate/bin/kubernetes-validate");
    let validate = if own.is_file() { own } else { tool::find("kubernetes-validate")? };
    let dir = TempDir::new()?;
    for name in OVERLAYS {
        let yaml = overlay(name)?;
        let file = dir.write(&format!("{name}.yaml"), &yaml)?;
        let (out, err) = tool::run(Command::new(&validate).args(["--strict"]).arg(file))?;
        let said = out + &err;
        let objects = parse(&yaml)?;
        for object in objects.iter().filter(|object| object["kind"] != FOREIGN) {
            let kind = object["kind"].as_str().context("an object without kind")?.to_lowercase();
            ensure!(
                said.contains(&format!("passed for resource {kind}/")),
                "{name}: {kind} was not checked:\n{said}"
            );
        }
    }
    Ok(())
}

fn manifests_ask_for_no_more_than_needed() -> Outcome {
    for name in OVERLAYS {
        let objects = parse(&overlay(name)?)?;
        for object in &objects {
            let kind = &object["kind"];
            for label in LABELS {
                let label = format!("app.kubernetes.io/{label}");
                ensure!(
                    object["metadata"]["labels"][&label].is_string(),
                    "{name}: {kind} has no label {label}"
                );
            }
            // Nothing asks the API server for anything, so nothing is allowed to.
            ensure!(
                !kind.as_str().unwrap_or_default().contains("Role"),
                "{name}: a {kind} that nobody needs"
            );
        }
        let daemon_set = find(&objects, "DaemonSet")?;
        let pod = &daemon_set["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        ensure!(pod["automountServiceAccountToken"] == false, "{name}: a token that nobody needs");
        ensure!(
            pod["hostNetwork"].is_null() && pod["hostIPC"].is_null(),
            "{name}: a host namespace too many"
        );
        ensure!(
            container["image"] == concat!("localhost/kernmeter:", env!("CARGO_PKG_VERSION")),
            "{name}: {container}"
        );
        ensure!(container["resources"]["limits"]["memory"].is_string(), "{name}: no memory limit");
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            ensure!(container[probe]["httpGet"]["port"] == "metrics", "{name}: no {probe}");
        }
        ensure!(
            pod["priorityClassName"] == find(&objects, "PriorityClass")?["metadata"]["name"],
            "{name}: priority"
        );
        // The names of volumes and of what they hold agree.
        let config = find(&objects, "ConfigMap")?;
        let mounted: BTreeSet<_> = pod["volumes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|v| v["configMap"]["name"].as_str())
            .collect();
        let known = config["metadata"]["name"].as_str().into_iter().collect();
        ensure!(mounted == known, "{name}: the pod mounts {mounted:?}, there is {known:?}");
    }
    Ok(())
}

fn the_privileged_overlay_is_the_only_privileged_one() -> Outcome {
    for name in OVERLAYS {
        let objects = parse(&overlay(name)?)?;
        let pod = &find(&objects, "DaemonSet")?["spec"]["template"]["spec"];
        let context = &pod["containers"][0]["securityContext"];
        let profile = &pod["securityContext"]["seccompProfile"]["type"];
        if name == "privileged" {
            ensure!(context["privileged"] == true && context["capabilities"].is_null(), "{name}: {context}");
            ensure!(profile == "Unconfined", "{name}: {profile}");
            continue;
        }
        let expected = json!({
            "runAsUser": 0,
            "runAsGroup": 0,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["BPF", "PERFMON"]},
        });
        ensure!(context == &expected, "{name}: {context}");
        ensure!(profile == "RuntimeDefault", "{name}: {profile}");
    }
    Ok(())
}

fn a_component_replaces_the_seccomp_profile() -> Outcome {
    // A component is named relative to the overlay that takes it in.
    let dir = TempDir::new()?;
    let copy = dir.path().join("kubernetes");
    tool::run(Command::new("cp").arg("-r").arg(kubernetes()).arg(&copy))?;
    let mine = copy.join("overlays/mine");
    fs::create_dir(&mine)?;
    let text = "resources: [../plain]\ncomponents: [../../components/seccomp-localhost]\n";
    fs::write(mine.join("kustomization.yaml"), text)?;
    let objects = parse(&build(&mine)?)?;
    let profile =
        &find(&objects, "DaemonSet")?["spec"]["template"]["spec"]["securityContext"]["seccompProfile"];
    let expected = json!({"type": "Localhost", "localhostProfile": "profiles/kernmeter.json"});
    ensure!(profile == &expected, "the profile is {profile}");
    Ok(())
}

fn configuration_is_valid() -> Outcome {
    if !agent::program().exists() {
        skip!("no agent at {}", agent::program().display());
    }
    let path = kubernetes().join("base/kernmeter.yaml");
    let check = |path: &Path| tool::run(Command::new(agent::program()).args(["config", "check"]).arg(path));
    check(&path)?;
    // The check can fail.
    let dir = TempDir::new()?;
    let broken = dir.write("broken.yaml", &(fs::read_to_string(path)? + "\nno_such_key: 1\n"))?;
    if check(&broken).is_ok() {
        bail!("an unknown key passes the check");
    }
    Ok(())
}
