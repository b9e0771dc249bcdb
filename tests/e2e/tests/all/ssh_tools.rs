//! Tools that start `ssh` themselves, by a service's name: Ansible, and what editors do that work on a remote folder (VS Code's
//! Remote-SSH): a script over stdin that leaves a server of theirs on the far host's loopback, and many connections to it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use iap_e2e::{Background, Ran, wait_until};
use serde_json::Value;

use crate::postgres::clients::built;
use crate::ssh_world::{World, assert_same, write_random};

const FILE_BYTES: u64 = 3 << 20;
/// Connections of an editor to its server at once, and what goes through each, both ways.
const EDITORS: usize = 6;
const EDITOR_BYTES: usize = 4 << 20;

const PLAYBOOK: &str = r#"
- hosts: all
  tasks:
    - ansible.builtin.ping:
    - ansible.builtin.command: id -un
      register: who
      changed_when: false
    - ansible.builtin.assert: { that: who.stdout == account }
    - ansible.builtin.copy: { src: "{{ folder }}/source", dest: "{{ folder }}/there", mode: "0640" }
    - ansible.builtin.copy: { content: "for {{ account }} at {{ inventory_hostname }}\n", dest: "{{ folder }}/note" }
    - ansible.builtin.fetch: { src: "{{ folder }}/there", dest: "{{ folder }}/back", flat: true }
    - ansible.builtin.command: sh -c 'echo out; echo err >&2; exit 7'
      register: fails
      changed_when: false
      failed_when: fails.rc != 7 or fails.stdout != "out" or fails.stderr != "err"
"#;

/// Answers each connection with what it sends, says where, and ends with the session.
const ECHO_SERVER: &str = r#"
exec python3 -c '
import socketserver, sys, threading
class Echo(socketserver.StreamRequestHandler):
    rbufsize = 0
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
server = Server(("127.0.0.1", 0), Echo)
print("listeningOn==%d==" % server.server_address[1], flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
'
"#;

/// With the ways it has to run modules: files it copies first, or pipes.
fn ansible(world: &World) {
    let file = |name: &str| world.files.path().join(name);
    write_random(&file("source"), FILE_BYTES);
    std::fs::write(file("play.yml"), PLAYBOOK).unwrap();
    let inventory = format!(
        "{} ansible_python_interpreter=/usr/bin/python3 account={} folder={}\n",
        world.service,
        world.me,
        world.files.path().display()
    );
    std::fs::write(file("inventory"), inventory).unwrap();
    // What people have in ~/.ssh/config, which is not a test's to write; the rest is Ansible's own, but for how long one
    // connection waits for more work.
    let arguments = format!(
        "-F {} -C -o ControlMaster=auto -o ControlPersist=3s",
        world.config()
    );
    for (pipelining, changes) in [("0", "changed=3"), ("1", "changed=0")] {
        let mut ansible = Command::new(built("venv/bin/ansible-playbook"));
        ansible.arg("-i").arg(file("inventory")).arg(file("play.yml"));
        ansible
            .env("ANSIBLE_HOME", file("ansible"))
            .env("ANSIBLE_REMOTE_TMP", file("far"))
            .env("ANSIBLE_SSH_CONTROL_PATH_DIR", file("cp"))
            .env("ANSIBLE_SSH_ARGS", &arguments)
            .env("ANSIBLE_PIPELINING", pipelining)
            .env("ANSIBLE_NOCOLOR", "1")
            .env("IAPCTL_NONINTERACTIVE", "1")
            .env("LC_ALL", "C.UTF-8");
        let ran = Ran::from(ansible.stdin(Stdio::null()).output().unwrap());
        let said = ran.succeeded().unwrap();
        assert!(
            said.contains("failed=0") && said.contains(changes),
            "pipelining {pipelining}: {said}"
        );
        for name in ["there", "back"] {
            assert_same(&file("source"), &file(name));
        }
        let note = std::fs::read_to_string(file("note")).unwrap();
        assert_eq!(note, format!("for {} at {}\n", world.me, world.service));
    }
}

/// `ssh -T -D PORT host bash`, the script by stdin, and connections by way of that port.
struct Editor {
    port: u16,
    server: u16,
    /// The client ends with whoever hears it, and the server with whoever speaks to it.
    _pipes: (ChildStdin, BufReader<ChildStdout>),
    _ssh: Background,
}

impl Editor {
    fn open(world: &World) -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let dynamic = format!("127.0.0.1:{port}");
        let flags = ["-T", "-D", &dynamic, "-o", "ConnectTimeout=15"];
        let mut ssh = world.client("ssh", &[&flags[..], &[world.service, "bash"]].concat());
        let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut script = ssh.stdin.take().unwrap();
        script.write_all(ECHO_SERVER.as_bytes()).unwrap();
        let mut said = String::new();
        let mut output = BufReader::new(ssh.stdout.take().unwrap());
        let ssh = Background(ssh);
        let server = loop {
            said.clear();
            assert!(output.read_line(&mut said).unwrap() > 0, "no server was started");
            if let Some((_, behind)) = said.split_once("listeningOn==") {
                break behind.split_once("==").unwrap().0.parse().unwrap();
            }
        };
        Self {
            port,
            server,
            _pipes: (script, output),
            _ssh: ssh,
        }
    }

    /// By SOCKS 5 (RFC 1928), without a login.
    fn connect(&self) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.write_all(&[5, 1, 0])?;
        stream.read_exact(&mut [0; 2])?;
        let [high, low] = self.server.to_be_bytes();
        stream.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low])?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer)?;
        match answer[1] {
            0 => Ok(stream),
            refused => Err(std::io::Error::other(format!("SOCKS: {refused}"))),
        }
    }

    /// Many at once, each of which has all that it sent come back, and one beside them that rests.
    fn works(&self) {
        let mut resting = self.connect().unwrap();
        std::thread::scope(|scope| {
            for number in 0..EDITORS {
                scope.spawn(move || {
                    let sent: Vec<u8> = (0..EDITOR_BYTES)
                        .map(|at| (at / 7 * (number + 3)) as u8)
                        .collect();
                    let stream = self.connect().unwrap();
                    let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
                    let writes = scope.spawn({
                        let sent = sent.clone();
                        move || {
                            writer.write_all(&sent).unwrap();
                            writer.shutdown(Shutdown::Write).unwrap();
                        }
                    });
                    let mut back = Vec::new();
                    reader.read_to_end(&mut back).unwrap();
                    writes.join().unwrap();
                    assert!(back == sent, "{number}: {} bytes came back", back.len());
                });
            }
        });
        resting.write_all(b"still here").unwrap();
        let mut back = [0; 10];
        resting.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"still here");
    }
}

fn records(world: &World) -> Vec<Value> {
    world.plane.log_in("auditor").unwrap();
    let over = |all: &[Value]| !all.is_empty() && all.iter().all(|one| !one["end"].is_null());
    let sessions = world.plane.sessions_when(over).unwrap();
    let ids = sessions.iter().map(|one| one["session_id"].as_str().unwrap());
    ids.flat_map(|id| world.plane.records(id).unwrap()).collect()
}

#[test]
fn ansible_and_an_editors_server_work_where_the_agent_passes_bytes_on() {
    let world = World::relaying(r#"["{me}"]"#);
    ansible(&world);
    Editor::open(&world).works();
}

#[test]
fn ansible_and_an_editors_server_work_and_are_on_record_where_the_agent_records() {
    let world = World::recording();
    ansible(&world);
    let editor = Editor::open(&world);
    assert!(editor.connect().is_err(), "no rule allows forwarding");
    world.apply_policy(world.service, "[\"{me}\"]\nfeatures = [\"ssh.port_forwarding\"]");
    wait_until("the rule allows forwarding", || Ok(editor.connect().is_ok())).unwrap();
    editor.works();
    let place = format!("127.0.0.1:{}", editor.server);
    drop(editor);

    let records = records(&world);
    let some = |what: &str, is: &dyn Fn(&Value) -> bool| {
        assert!(records.iter().any(is), "{what}: {records:#?}");
    };
    some("the file that was copied", &|record| {
        record["event"] == "session.file" && record["bytes_written"] == FILE_BYTES && record["ok"] == true
    });
    some("the command of a module", &|record| {
        let command = record["command"].as_str();
        record["event"] == "session.command"
            && command.is_some_and(|told| told.contains("AnsiballZ_command.py"))
    });
    for allowed in [false, true] {
        some("forwarding", &|record| {
            record["event"] == "session.forward" && record["forward"] == place && record["allowed"] == allowed
        });
    }
}
