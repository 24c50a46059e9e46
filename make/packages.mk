# SPDX-License-Identifier: MIT
#
# Ways into other projects: one file, a release, packages (docs/packages.md).

##@ Packages of bnorm

amalgamation: $(BUILD)/amalgamation/bnorm.c ## bnorm as one source and one header, for `cc -c bnorm.c`

$(BUILD)/amalgamation/bnorm.c: scripts/amalgamate LICENSE $(lib_sources) \
		$(wildcard include/*.h dispatch/*.h src/*.h src/*/*.h)
	$(call say,WRITE) CC='$(CC)' scripts/amalgamate $(@D)

# Does that file compute the same bits?
verify-amalgamation: $(BUILD)/amalgamation/bnorm-verify
	$(RUN) $<

$(BUILD)/amalgamation/bnorm-verify: $(BUILD)/tools/verify.c.o $(BUILD)/amalgamation/bnorm.c.o
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(libs)

# With no more than the README says.
$(BUILD)/amalgamation/bnorm.c.o: $(BUILD)/amalgamation/bnorm.c $(BUILD)/flags
	$(call say,CC) $(CC) $(CFLAGS) -Wall -Wextra -Werror -DBNORM_SLEEF=$(if $(sleef_libs),1,0) -c -o $@ $<

dist: ## a release of what is committed: sources, one file, SHA256SUMS, SPDX list; the same bytes every time
	scripts/dist $(BUILD)/dist

deb: dist ## Debian packages in build/deb: libbnorm0, libbnorm-dev, bnorm-tools; and what lintian says of them
	rm -rf $(BUILD)/deb
	mkdir -p $(BUILD)/deb
	cp $(BUILD)/dist/bnorm-$(VERSION).tar.gz $(BUILD)/deb/bnorm_$(VERSION).orig.tar.gz
	tar -xzf $(BUILD)/dist/bnorm-$(VERSION).tar.gz -C $(BUILD)/deb
	cp -r packaging/debian $(BUILD)/deb/bnorm-$(VERSION)/debian
	cd $(BUILD)/deb/bnorm-$(VERSION) && $(without_make) dpkg-buildpackage -us -uc
	lintian --allow-root --fail-on error $(BUILD)/deb/*.changes

# A build of its own, with its own flags and number of compilers.
without_make = env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS

# With Conan 2 from PyPI. Folders of its own, so that nothing is left in the tree or the home.
conan: ## the package of Conan, made and tried (packaging/conan)
	test -x $(BUILD)/conan/bin/conan || { python3 -m venv $(BUILD)/conan && $(BUILD)/conan/bin/pip install -q conan; }
	CONAN_HOME=$(abspath $(BUILD))/conan/home $(BUILD)/conan/bin/conan profile detect --exist-ok
	CONAN_HOME=$(abspath $(BUILD))/conan/home $(BUILD)/conan/bin/conan create packaging/conan \
		-c tools.cmake.cmake_layout:test_folder=$(abspath $(BUILD))/conan/test

packages: ## every quick way into other projects, tried with small ones (tests/consumers)
	JOBS=$(JOBS) tests/consumers/run.sh $(BUILD)/packages

.PHONY: conan packages deb amalgamation verify-amalgamation dist
