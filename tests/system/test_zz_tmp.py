import itertools, os, time
from agent.model.pipeline import Reason
from kumihimo.v1 import network_pb2
from tests.policymodel import Probe
from tests.system import frames, frames6, probes
from tests.system.cloud import RECEIVED, SENT, drops
from tests.system.fragments import Piece, behind_options, body, fragments, pieces
from tests.system.test_ipv6 import link_local
from tests.system.volley import _fence, ip

def test_tmp(scene, cloud, h1, h2):
    network = scene.network()
    cloud.admin.create(network_pb2.Subnet(network_id=network.id, cidr="fd00:1::/64"))
    n = itertools.count(20000)
    def narrow(*ports): return [{"direction": w, "ethertype": f, "protocol": p, "port_range_min": port, "port_range_max": port} for w in (1, 2) for f in (4,6) for p in ("tcp","udp") for port in ports]
    openr = [{"direction": w, "ethertype": f} for w in (1,2) for f in (4,6)]
    pairs = {}
    for kind in ("stateful", "stateless", "open stateful", "open stateless"):
        g = scene.group(*(openr if "open" in kind else narrow(80)), stateful="less" not in kind).id
        a, b = scene.vm(network, h1, security_group_ids=[g]), scene.vm(network, h2, security_group_ids=[g])
        for vm in (a, b): vm.workload.run("ip address flush dev eth0")
        pairs[kind] = a, b
    sent = {}
    for kind, (a, b) in pairs.items():
        for family in (4, 6):
            w = probes.frame(a.mac, b.mac, Probe(ip(a,family), ip(b,family), 17, (next(n), 80)), os.urandom(3000))
            p = pieces(body(w), 1400, 2800)
            sent[kind, family, "later alone"] = [*fragments(w, p[1:])]
            sent[kind, family, "first alone"] = [*fragments(w, p[:1])]
            w = probes.frame(a.mac, b.mac, Probe(ip(a,family), ip(b,family), 17, (next(n), 22)), os.urandom(3000))
            sent[kind, family, "forbidden"] = [*fragments(w, pieces(body(w), 1400, 2800))]
        dh = frames6.udp(a.mac, b.mac, link_local(a), link_local(b), (547, 546), os.urandom(3000))
        sent[kind, 6, "dhcp"] = [*fragments(dh, pieces(behind_options(body(dh), 17, 1280), 1280, 1280+1280, 1280+2560), 60)]
    for (kind, f, name), frs in sent.items():
        pairs[kind][0].guest.send(*frs)
    def counts(a, b):
        return {(v, w): {Reason(r).name: c for r, c in drops(vm.host, vm.ofport, w).items()} for v, vm in (("a", a), ("b", b)) for w in (SENT, RECEIVED)}
    began = time.time()
    told = {}
    while time.time() < began + 75:
        for kind, (a, b) in pairs.items():
            for family in (4, 6):
                w = probes.frame(a.mac, b.mac, Probe(ip(a,family), ip(b,family), 17, (next(n), 80)), os.urandom(3000))
                a.guest.send(probes.frame(a.mac, b.mac, Probe(ip(a,family), ip(b,family), 17, (next(n), 80)), b"x"), *fragments(w, pieces(body(w), 1400, 2800)))
        time.sleep(1)
        everywhere = {(k, e): vm.guest.seen() for k, p in pairs.items() for e, vm in zip("ab", p)}
        for (kind, f, name), frs in sent.items():
            got = [(where, i) for where, seen in everywhere.items() for i, fr in enumerate(frs) if any(s[14:160] == fr[14:160] for s in seen)]
            if told.get((kind, f, name)) != got:
                told[kind, f, name] = got
                print(f"{time.time()-began:5.1f} {kind} v{f} {name} {got}", flush=True)
        for kind, p in pairs.items():
            c = counts(*p)
            if told.get(kind) != c:
                told[kind] = c
                print(f"{time.time()-began:5.1f} {kind} {c}", flush=True)
    print(h1.run("ovs-appctl dpctl/ipf-get-status"))
