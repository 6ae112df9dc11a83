#!/usr/bin/env bash
# A real kube-apiserver into .apiserver (or $APISERVER_HOME), and etcd, from Debian's own packages; needs root for apt.
# Once: 8 to 15 minutes on two cores, 3 GB of disk meanwhile, 110 MB after. Nothing is done where it is there already.
#
# No package ships the program, but the source package `kubernetes` of Debian bookworm is the whole tree with its vendored
# parts, and bookworm's golang-1.19 builds it without a network. It is Kubernetes 1.20, whose list and watch of Pods are as
# today's; newer sources in Debian hold kubectl only.
set -euo pipefail
HOME_DIR=${APISERVER_HOME:-$(dirname "$(realpath "$0")")/../.apiserver}
mkdir -p "$HOME_DIR"; HOME_DIR=$(realpath "$HOME_DIR"); BIN=$HOME_DIR/bin/kube-apiserver
[[ -x $BIN ]] && command -v etcd > /dev/null && exit
grep -q bookworm /etc/os-release || { echo "this needs Debian bookworm: its sources are built" >&2; exit 1; }

cd "$HOME_DIR"; mkdir -p src lists/partial cache/archives/partial bin go
apt-get update -qq
apt-get install -y -qq --no-install-recommends golang-1.19-go etcd-server dpkg-dev jq rsync make openssl > apt.log 2>&1
[[ -x $BIN ]] && exit
mirror=$( (grep -hs '^URIs: ' /etc/apt/sources.list.d/*.sources; grep -hs '^deb ' /etc/apt/sources.list) | awk 'NR == 1 {print $2}')
echo "deb-src ${mirror:?no mirror in the lists of apt} bookworm main" > sources.list   # a list of our own: the machine's stays
own=(-o "Dir::Etc::sourcelist=$HOME_DIR/sources.list" -o Dir::Etc::sourceparts=/dev/null
     -o "Dir::State::lists=$HOME_DIR/lists" -o "Dir::Cache=$HOME_DIR/cache" -o APT::Sandbox::User=root)
apt-get "${own[@]}" -qq update
cd src
apt-get "${own[@]}" -qq source --download-only kubernetes
rm -rf k; dpkg-source -x --no-check kubernetes_*.dsc k > /dev/null
# The vendored reflect2 1.0.1 crashes with Go from 1.18 on; Debian has 1.0.2.
apt-get -qq download golang-github-modern-go-reflect2-dev
dpkg -x golang-github-modern-go-reflect2-dev_*.deb reflect2
rm -rf k/vendor/github.com/modern-go/reflect2
cp -r reflect2/usr/share/gocode/src/github.com/modern-go/reflect2 k/vendor/github.com/modern-go/reflect2
cd k; mkdir -p .go/src/k8s.io; ln -sfn ../../.. .go/src/k8s.io/kubernetes
echo "building kube-apiserver: some 10 minutes"
GOPATH=$PWD/.go PATH=/usr/lib/go-1.19/bin:$PATH CGO_ENABLED=0 HOME=$HOME_DIR/go GOCACHE=$HOME_DIR/go/cache GOPROXY=off \
  GOFLAGS= nice -n 15 make WHAT=cmd/kube-apiserver GOLDFLAGS="-s -w" > "$HOME_DIR/build.log" 2>&1 \
  || { tail -5 "$HOME_DIR/build.log" >&2; exit 1; }
install -m 755 _output/local/bin/linux/amd64/kube-apiserver "$BIN"; "$BIN" --version
rm -rf "$HOME_DIR/src" "$HOME_DIR/go" "$HOME_DIR/cache" "$HOME_DIR/lists"
