//! `deploy/kubernetes`: each overlay is rendered by kustomize and compared with the schemas of Kubernetes and with what a
//! careful cluster asks for; the configuration in it is read by the agent.

use std::collections::BTreeSet;
use std::fmt::Write as _;
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
    only_pods_are_read,
    components_do_what_they_say,
    components_fit_the_schemas,
    configuration_is_valid
);

const OVERLAYS: [&str; 3] = ["plain", "prometheus-operator", "privileged"];
const COMPONENTS: [&str; 5] =
    ["kubelet-directories", "namespace-metadata", "network-policy", "seccomp-localhost", "web-config"];
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

/// The plain overlay with components. They are named relative to the overlay that takes them in.
fn with_components(names: &[&str]) -> Result<String> {
    let dir = TempDir::new()?;
    let copy = dir.path().join("kubernetes");
    tool::run(Command::new("cp").arg("-r").arg(kubernetes()).arg(&copy))?;
    let mine = copy.join("overlays/mine");
    fs::create_dir(&mine)?;
    let mut text = "resources: [../plain]\ncomponents:\n".to_owned();
    for name in names {
        writeln!(text, "  - ../../components/{name}")?;
    }
    fs::write(mine.join("kustomization.yaml"), text)?;
    build(&mine)
}

/// kubernetes-validate's verdict on rendered manifests: every object is known and fits.
fn fits_the_schemas(name: &str, yaml: &str) -> Result<()> {
    let own =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/kubernetes-validate/bin/kubernetes-validate");
    let validate = if own.is_file() { own } else { tool::find("kubernetes-validate")? };
    let dir = TempDir::new()?;
    let file = dir.write(&format!("{name}.yaml"), yaml)?;
    let (out, err) = tool::run(Command::new(validate).args(["--strict"]).arg(file))?;
    let said = out + &err;
    let objects = parse(yaml)?;
    for object in objects.iter().filter(|object| object["kind"] != FOREIGN) {
        let kind = object["kind"].as_str().context("an object without kind")?.to_lowercase();
        ensure!(
            said.contains(&format!("passed for resource {kind}/")),
            "{name}: {kind} was not checked:\n{said}"
        );
    }
    Ok(())
}

fn manifests_fit_the_schemas() -> Outcome {
    for name in OVERLAYS {
        fits_the_schemas(name, &overlay(name)?)?;
    }
    // The validation can fail.
    let broken = overlay("plain")?.replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: 5");
    match fits_the_schemas("broken", &broken) {
        Ok(()) => bail!("a number passes for a boolean"),
        Err(error) => ensure!(format!("{error:#}").contains("readOnlyRootFilesystem"), "{error:#}"),
    }
    Ok(())
}

fn components_fit_the_schemas() -> Outcome {
    for name in COMPONENTS {
        fits_the_schemas(name, &with_components(&[name])?)?;
    }
    let all: Vec<&str> = COMPONENTS.into_iter().filter(|name| *name != "kubelet-directories").collect();
    fits_the_schemas("all", &with_components(&all)?)
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
        }
        let daemon_set = find(&objects, "DaemonSet")?;
        let pod = &daemon_set["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        ensure!(pod["automountServiceAccountToken"] == false, "{name}: a token that does not expire");
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

/// What a role allows: (resource, verbs), sorted.
fn rights(role: &Value) -> Result<Vec<(String, String)>> {
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().context("no rules")? {
        ensure!(rule["apiGroups"] == json!([""]), "another group: {rule}");
        ensure!(rule["nonResourceURLs"].is_null(), "a path: {rule}");
        for resource in rule["resources"].as_array().context("no resources")? {
            rights.push((resource.as_str().context("no text")?.to_owned(), rule["verbs"].to_string()));
        }
    }
    rights.sort();
    Ok(rights)
}

fn only_pods_are_read() -> Outcome {
    let read = r#"["get","list","watch"]"#.to_owned();
    for name in OVERLAYS {
        let objects = parse(&overlay(name)?)?;
        let roles: Vec<_> = objects
            .iter()
            .filter(|object| object["kind"].as_str().is_some_and(|k| k.ends_with("Role")))
            .collect();
        let [role] = roles[..] else { bail!("{name}: {} roles", roles.len()) };
        ensure!(rights(role)? == [("pods".to_owned(), read.clone())], "{name}: {role}");
        let binding = find(&objects, "ClusterRoleBinding")?;
        ensure!(binding["roleRef"]["name"] == role["metadata"]["name"], "{name}: {binding}");
        let account = find(&objects, "ServiceAccount")?;
        let subject = json!([{"kind": "ServiceAccount", "name": account["metadata"]["name"],
                              "namespace": account["metadata"]["namespace"]}]);
        ensure!(binding["subjects"] == subject, "{name}: {binding}");
        ensure!(account["automountServiceAccountToken"] == false, "{name}: tokens for everybody");
        let pod = &find(&objects, "DaemonSet")?["spec"]["template"]["spec"];
        ensure!(pod["serviceAccountName"] == account["metadata"]["name"], "{name}: another account");
        let tokens = volume(pod, "token")?["projected"]["sources"].as_array().context("no sources")?;
        let seconds =
            tokens.iter().find_map(|source| source["serviceAccountToken"]["expirationSeconds"].as_u64());
        ensure!(seconds == Some(3600), "{name}: the token lives for {seconds:?} s");
        let node = json!([{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]);
        ensure!(pod["containers"][0]["env"] == node, "{name}: the agent does not know its node");
    }
    let objects = parse(&with_components(&["namespace-metadata"])?)?;
    let both = [("namespaces".to_owned(), read.clone()), ("pods".to_owned(), read)];
    ensure!(rights(find(&objects, "ClusterRole")?)? == both, "namespaces cannot be read");
    Ok(())
}

fn volume<'a>(pod: &'a Value, name: &str) -> Result<&'a Value> {
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    volumes.iter().find(|volume| volume["name"] == name).with_context(|| format!("no volume {name}"))
}

fn components_do_what_they_say() -> Outcome {
    let objects = |name: &str| parse(&with_components(&[name])?);
    let pod = |objects: &[Value]| -> Result<Value> {
        Ok(find(objects, "DaemonSet")?["spec"]["template"]["spec"].clone())
    };
    let secured = pod(&objects("seccomp-localhost")?)?;
    let profile = json!({"type": "Localhost", "localhostProfile": "profiles/kernmeter.json"});
    ensure!(secured["securityContext"]["seccompProfile"] == profile, "another profile: {secured}");

    let offline = objects("kubelet-directories")?;
    ensure!(find(&offline, "ClusterRole").is_err(), "a role for nobody");
    ensure!(find(&offline, "ClusterRoleBinding").is_err(), "a binding for nobody");
    let directories = pod(&offline)?;
    ensure!(volume(&directories, "token").is_err(), "a token for nothing");
    ensure!(volume(&directories, "pod-logs")?["hostPath"]["path"] == "/var/log/pods", "no folder of pods");
    let mounts = directories["containers"][0]["volumeMounts"].as_array().context("no mounts")?;
    for mount in mounts {
        ensure!(mount["readOnly"] == true, "it can be written: {mount}");
        ensure!(
            volume(&directories, mount["name"].as_str().unwrap_or_default()).is_ok(),
            "no volume: {mount}"
        );
    }
    let config = find(&offline, "ConfigMap")?["data"]["kernmeter.yaml"].as_str().context("no file")?;
    ensure!(config.contains("pods: directories"), "the agent does not look there:\n{config}");

    let web = pod(&objects("web-config")?)?;
    let secret = volume(&web, "web")?;
    ensure!(secret["secret"]["defaultMode"] == 0o400, "others can read the secret: {secret}");
    let container = &web["containers"][0];
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        ensure!(container[probe]["httpGet"]["scheme"] == "HTTPS", "{probe} talks plain text");
    }
    let argument = json!("--web.config.file=/etc/kernmeter-web/web.yaml");
    ensure!(container["args"].as_array().is_some_and(|args| args.contains(&argument)), "no such argument");

    let policed = objects("network-policy")?;
    let policy = &find(&policed, "NetworkPolicy")?["spec"];
    ensure!(policy["policyTypes"] == json!(["Ingress"]), "another policy: {policy}");
    let labels = &find(&policed, "DaemonSet")?["spec"]["template"]["metadata"]["labels"];
    let selected = policy["podSelector"]["matchLabels"].as_object().context("no selector")?;
    ensure!(selected.iter().all(|(name, value)| labels[name] == *value), "it selects other pods: {policy}");
    Ok(())
}

fn configuration_is_valid() -> Outcome {
    if !agent::program().exists() {
        skip!("no agent at {}", agent::program().display());
    }
    let path = kubernetes().join("base/kernmeter.yaml");
    let directories = kubernetes().join("components/kubelet-directories/kernmeter.yaml");
    let check = |path: &Path| tool::run(Command::new(agent::program()).args(["config", "check"]).arg(path));
    check(&path)?;
    check(&directories)?;
    // The check can fail.
    let dir = TempDir::new()?;
    let broken = dir.write("broken.yaml", &(fs::read_to_string(path)? + "\nno_such_key: 1\n"))?;
    if check(&broken).is_ok() {
        bail!("an unknown key passes the check");
    }
    Ok(())
}
