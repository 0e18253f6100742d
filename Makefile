# make demo   two hosts and their containers on this machine, and a table of figures
# make check  format, lints, source checks, unit tests and those that need no privileges
# make test   everything that must hold; installs what it needs (Debian, Ubuntu)
# make bench  the Criterion benches
# make soak   transfers of a GiB each way over every NIC class, offloads on and off
# make deb    a Debian package in target/deb/
# make try-package  that package, and make install, in a fresh Debian root; make test does it
#             with the program that it has built anyway
# make flags  docs/flags.md, from the table of flags
# make fuzz   all fuzz targets, FUZZ_SECONDS each (default one hour)
# make deny   licenses, sources and known weaknesses of dependencies (needs cargo-deny)

PREFIX ?= /usr/local
FUZZ_SECONDS ?= 3600
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo)
# Where all that the tests need has been installed, a test that cannot be made is a failure.
# Most tests wait for daemons and datastores, so more of them run than there are processors.
TEST_THREADS ?= 8
TEST_SETTINGS = UVXLAN_NO_SKIP=1 RUST_TEST_THREADS=$(TEST_THREADS)
# cargo refuses an empty runner, so as root there is none; sudo hands no variables over.
RUN_TESTS_AS_ROOT = $(TEST_SETTINGS) $(if $(SUDO),\
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(SUDO) env $(TEST_SETTINGS)" \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$(SUDO) env $(TEST_SETTINGS)")

.PHONY: all deny demo check test check-style unit soak bench bench-smoke fuzz fuzz-smoke flags doc install clean deb deb-root try-package try-unreleased build-needs test-needs

all: build-needs
	cargo build --release --locked

build-needs:
	@./scripts/install-needs.sh build

test-needs:
	@./scripts/install-needs.sh test

demo: all
	$(SUDO) ./target/release/uvxlan demo

check: build-needs check-style
	cargo test --locked --lib --bins --test unprivileged

test: test-needs check-style unit try-unreleased bench-smoke fuzz-smoke doc
	@echo "all tests passed"

check-style:
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --no-default-features --lib --examples -- -D warnings
	./scripts/check-sources.sh

# Tests in network namespaces need root; where sudo is needed cargo builds as the user
# and only the test programs run as root.
unit:
	$(RUN_TESTS_AS_ROOT) cargo test --locked

soak: TEST_SETTINGS += UVXLAN_TRANSFER_MIB=4096
soak: test-needs
	$(RUN_TESTS_AS_ROOT) cargo test --release --locked --test packets large_packets -- --nocapture

bench:
	cargo bench --locked

# Each bench once, without measuring; so the build of the tests will do.
bench-smoke:
	cargo bench --locked --profile dev -- --test

fuzz:
	./fuzz/run.sh $(FUZZ_SECONDS)

fuzz-smoke:
	./fuzz/run.sh 5

deny:
	cargo deny check

# docs/flags.md; a test fails while it is stale.
flags:
	cargo run --locked --quiet -- flags >docs/flags.md.new
	mv docs/flags.md.new docs/flags.md

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

# Program, unit, manual pages, completions and documentation. Enables and starts nothing;
# share/uvxlan/ holds examples to copy. Files are world-readable whatever the umask, except
# etc/default/uvxlan, which may hold a password.
install: $(if $(BIN),,all)
	install -Dm755 $(or $(BIN),target/release/uvxlan) $(DESTDIR)$(PREFIX)/sbin/uvxlan
	@# Line tables are four fifths of the file; function names stay for backtraces.
	! command -v strip >/dev/null || strip --strip-debug $(DESTDIR)$(PREFIX)/sbin/uvxlan
	install -Dm755 systemd/mk-docker-opts.sh $(DESTDIR)$(PREFIX)/sbin/mk-docker-opts.sh
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/uvxlan
	umask 022; sed 's|/usr/local/sbin/|$(PREFIX)/sbin/|' systemd/uvxlan.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/uvxlan.service
	ln -sf ../../sbin/uvxlan $(DESTDIR)$(PREFIX)/lib/uvxlan/flanneld
	[ -e $(DESTDIR)/etc/default/uvxlan ] || install -Dm640 systemd/uvxlan.default $(DESTDIR)/etc/default/uvxlan
	install -Dm644 systemd/docker.service.d/uvxlan.conf $(DESTDIR)$(PREFIX)/share/uvxlan/docker.service.d/uvxlan.conf
	install -m644 systemd/flanneld.service systemd/50-flannel.link systemd/50-flannel.network \
		systemd/uvxlan-networkmanager.conf monitoring/alerts.yml monitoring/grafana.json \
		$(DESTDIR)$(PREFIX)/share/uvxlan/
	install -d $(DESTDIR)$(PREFIX)/share/doc/uvxlan/docs/images
	install -m644 README.md CHANGELOG.md SECURITY.md LICENSE-MIT LICENSE-APACHE $(DESTDIR)$(PREFIX)/share/doc/uvxlan/
	install -m644 docs/*.md $(DESTDIR)$(PREFIX)/share/doc/uvxlan/docs/
	install -m644 docs/images/*.svg $(DESTDIR)$(PREFIX)/share/doc/uvxlan/docs/images/
	umask 022; $(DESTDIR)$(PREFIX)/sbin/uvxlan man $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
		$(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	umask 022; $(DESTDIR)$(PREFIX)/sbin/uvxlan completions bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/uvxlan
	umask 022; $(DESTDIR)$(PREFIX)/sbin/uvxlan completions zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_uvxlan
	umask 022; $(DESTDIR)$(PREFIX)/sbin/uvxlan completions fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/uvxlan.fish

# A Debian package of what `make install` installs, in target/deb/. cargo-deb would be another
# tool to build, and would need the list of files a second time, in Cargo.toml.
deb: all
	rm -rf target/deb
	install -d target/deb
	$(MAKE) deb-root DESTDIR=$(CURDIR)/target/deb/root PREFIX=/usr BIN=target/release/uvxlan
	dpkg-deb --root-owner-group --build target/deb/root target/deb/

try-package: all
	$(SUDO) ./scripts/try-package.sh target/release/uvxlan

# The program as the tests build it: by itself it would be built from other features.
try-unreleased:
	cargo test --locked --no-run --test unprivileged
	$(SUDO) ./scripts/try-package.sh target/debug/uvxlan

# The contents of the package, below DESTDIR.
deb-root: install
	gzip -9nf $(DESTDIR)$(PREFIX)/share/man/man1/*.1
	install -m644 scripts/debian/copyright $(DESTDIR)$(PREFIX)/share/doc/uvxlan/copyright
	install -d $(DESTDIR)/DEBIAN
	umask 022; ./scripts/debian/control.sh $(DESTDIR)$(PREFIX)/sbin/uvxlan $(DESTDIR) >$(DESTDIR)/DEBIAN/control
	umask 022; cd $(DESTDIR) && find usr -type f -exec md5sum {} + | LC_ALL=C sort -k 2 >DEBIAN/md5sums
	install -m644 scripts/debian/conffiles $(DESTDIR)/DEBIAN/
	install -m755 scripts/debian/prerm scripts/debian/postinst scripts/debian/postrm $(DESTDIR)/DEBIAN/

clean:
	cargo clean
	rm -rf fuzz/target
