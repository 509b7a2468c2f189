"""Keys of a repository: adding, changing, revoking, rotating; what is planted or put back is refused."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from nacl.public import PrivateKey

from pipeline.crypto.keyring import Keyring
from pipeline.crypto.unlock import KeyKind, Unlock, by_password, new_key_file, new_recovery_key
from pipeline.errors import (
    IntegrityError,
    KeyRefusedError,
    NewerEpochError,
    ObjectRetainedError,
    UnsupportedFormatError,
    WrongPasswordError,
)
from pipeline.repository import Repository
from pipeline.repository.epochs import Recipient, format_epoch
from pipeline.repository.keys import checksum, wrap_keyring, wrap_master_key
from pipeline.storage.wrapper import StorageWrapper
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    CHEAP_KDF,
    PASSWORD,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.disks import MemoryDisk
from pipeline.testing.storage import Crash, CrashingStorage, MemoryStorage

CAPACITY_BYTES = 6 * BLOCK_SIZE_BYTES
MINE = by_password(PASSWORD)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def storage(clock: ManualClock) -> MemoryStorage:
    return MemoryStorage(clock)


@pytest.fixture
def bench(storage: MemoryStorage, clock: ManualClock) -> Workbench:
    return Workbench(storage, clock)


def add(repository: Repository, unlock: Unlock, label: str = "") -> str:
    return repository.add_key(unlock, label, kdf_cost=CHEAP_KDF)


def opened(storage: MemoryStorage, unlock: Unlock, clock: Callable[[], float]) -> Repository:
    return Repository.open_by(storage, unlock, clock=clock)


def copy_of(storage: MemoryStorage) -> MemoryStorage:
    other = MemoryStorage()
    other.objects = dict(storage.objects)
    other.modified_at_s = dict(storage.modified_at_s)
    return other


def backed_up(bench: Workbench, seed: int) -> tuple[str, bytes]:
    image = random.Random(seed).randbytes(CAPACITY_BYTES)
    root = bench.backup(image).map_root
    bench.commit(restore_point(disk_point(root, CAPACITY_BYTES)))
    return root, image


# ---- several keys -------------------------------------------------------------------------------


def test_every_kind_of_key_opens(bench: Workbench, storage: MemoryStorage, clock: ManualClock) -> None:
    repository = bench.repository
    unlocks = [by_password("Straße"), new_key_file(), new_recovery_key()]
    ids = [add(repository, unlock, f"für {n}") for n, unlock in enumerate(unlocks)]
    for unlock, key_id in zip(unlocks, ids, strict=True):
        again = opened(storage, unlock, clock)
        assert again.key_material == repository.key_material
        assert again.opened_key_id == key_id
    listed = {info.id: info for info in repository.list_keys()}
    assert [listed[key_id].label for key_id in ids] == ["für 0", "für 1", "für 2"]
    assert [listed[key_id].kind_name for key_id in ids] == ["password", "key file", "recovery key"]
    assert {info.problem for info in listed.values()} == {""}
    assert {info.created_at_s for info in listed.values()} == {int(clock())}
    assert bench.problems() == ()
    visible = b"".join(storage.objects.values())
    assert "für".encode() not in visible, "labels are not in the clear"


def test_a_wrong_key_is_told_from_a_kind_that_is_not_there(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    with pytest.raises(WrongPasswordError, match=r"has no recovery key .*open it with a password"):
        opened(storage, new_recovery_key(), clock)
    add(bench.repository, new_recovery_key())
    with pytest.raises(WrongPasswordError, match="wrong recovery key"):
        opened(storage, new_recovery_key(), clock)
    file = new_key_file()
    add(bench.repository, file)
    as_recovery = Unlock(kind=KeyKind.RECOVERY, secret=file.secret)
    with pytest.raises(WrongPasswordError, match="wrong recovery key"):
        opened(storage, as_recovery, clock)


def test_a_password_is_changed_and_keeps_its_label(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    old, new = by_password("old"), by_password("new")
    add(bench.repository, old, "Anna")
    key_id = bench.repository.change_key(old, new, kdf_cost=CHEAP_KDF)
    assert opened(storage, new, clock).opened_key_id == key_id
    assert [info.label for info in bench.repository.list_keys() if info.id == key_id] == ["Anna"]
    for unlock in (old, by_password("other")):
        with pytest.raises(WrongPasswordError, match="wrong password"):
            opened(storage, unlock, clock)
    with pytest.raises(WrongPasswordError, match="does not open"):
        bench.repository.change_key(old, by_password("more"), kdf_cost=CHEAP_KDF)


def test_the_last_key_stays(bench: Workbench, storage: MemoryStorage, clock: ManualClock) -> None:
    (mine,) = bench.repository.list_keys()
    with pytest.raises(KeyRefusedError, match="last one"):
        bench.repository.revoke_key(mine.id)
    other = add(bench.repository, new_key_file())
    storage.objects[f"keys/{other}"] = b"damaged"
    with pytest.raises(KeyRefusedError, match="last one"):
        bench.repository.revoke_key(mine.id)
    bench.repository.revoke_key(other)
    with pytest.raises(KeyRefusedError, match="has no key"):
        bench.repository.revoke_key(other)
    assert opened(storage, MINE, clock).id == bench.repository.id


@pytest.mark.parametrize("label", ["x" * 64, "ü" * 32, "two\nlines", "\x1b[31m"])
def test_labels_that_cannot_be_are_refused(
    bench: Workbench, storage: MemoryStorage, label: str
) -> None:
    before = dict(storage.objects)
    with pytest.raises(ValueError, match="label"):
        add(bench.repository, new_key_file(), label)
    with pytest.raises(ValueError, match="empty"):
        add(bench.repository, by_password(""))
    assert storage.objects == before


# ---- rotation -----------------------------------------------------------------------------------


def test_new_data_takes_the_new_key_and_old_data_stays(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    file = new_key_file()
    add(bench.repository, file)
    first = backed_up(bench, 1)
    untouched = {name: data for name, data in storage.objects.items() if name.startswith("packs/")}
    assert bench.repository.rotate_data_key() == 2
    second = backed_up(bench, 2)
    late = new_recovery_key()
    add(bench.repository, late)
    assert bench.repository.rotate_data_key() == 3
    third = backed_up(bench, 3)
    for name, data in untouched.items():
        assert storage.objects[name] == data
    for unlock in (MINE, file, late):
        again = Workbench(storage, clock, repository=opened(storage, unlock, clock))
        assert again.repository.key_epoch == 3
        assert again.repository.key_material == bench.repository.key_material
        assert again.problems() == ()
        for root, image in (first, second, third):
            assert again.restored(root, CAPACITY_BYTES) == image


def test_who_was_revoked_reads_nothing_new(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    fired = by_password("fired")
    key_id = add(bench.repository, fired)
    kept_copy = storage.objects[f"keys/{key_id}"]
    old_material = bench.repository.key_material
    bench.repository.revoke_key(key_id)
    bench.repository.rotate_data_key()
    root, _ = backed_up(bench, 1)
    with pytest.raises(WrongPasswordError, match="wrong password"):
        opened(storage, fired, clock)
    storage.objects[f"keys/{key_id}"] = kept_copy
    storage.modified_at_s[f"keys/{key_id}"] = 0
    with pytest.raises(WrongPasswordError, match="was revoked before the data key was changed"):
        opened(storage, fired, clock)
    thief = Repository.open_with_key(storage, old_material, expected_id=None, clock=clock)
    with pytest.raises(IntegrityError):
        Workbench(storage, clock, repository=thief).restored(root, CAPACITY_BYTES)
    # Neither does it help him that the next rotation would find his key object there again.
    (problem,) = (info.problem for info in bench.repository.list_keys() if info.id == key_id)
    assert "revoked and put back, or planted" in problem
    with pytest.raises(KeyRefusedError, match=key_id):
        bench.repository.rotate_data_key()
    bench.repository.revoke_key(key_id)
    assert bench.repository.rotate_data_key() == 3


def test_a_planted_key_object_is_not_given_the_next_epoch(
    bench: Workbench, storage: MemoryStorage
) -> None:
    knows_epoch_1 = bench.repository.keyring
    bench.repository.rotate_data_key()
    planted = bytes(range(16))
    storage.put(
        f"keys/{planted.hex()}",
        wrap_keyring(
            knows_epoch_1, by_password("evil"), planted, label="Anna", created_at_s=1, cost=CHEAP_KDF
        ),
    )
    with pytest.raises(KeyRefusedError, match=planted.hex()):
        bench.repository.rotate_data_key()
    stranger = Keyring(bytes(32), knows_epoch_1.repository_id)
    storage.objects[f"keys/{planted.hex()}"] = wrap_keyring(
        stranger, by_password("evil"), planted, label="", created_at_s=1, cost=CHEAP_KDF
    )
    with pytest.raises(KeyRefusedError, match="planted"):
        bench.repository.rotate_data_key()


def test_a_planted_epoch_is_refused(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    knows_epoch_1 = bench.repository.keyring
    before = bench.repository.key_material
    bench.repository.rotate_data_key()
    (mine,) = bench.repository.list_keys()
    public_key = storage.objects[f"keys/{mine.id}"][60:92]
    recipients = [Recipient(key_id=bytes.fromhex(mine.id), public_key=public_key)]
    # He knows the master key, not the secret of epoch 2.
    guessed = knows_epoch_1.with_epoch(2, bytes(32))
    storage.put("epochs/3", format_epoch(guessed, 3, b"\1" * 32, 1, recipients))
    with pytest.raises(IntegrityError, match="epochs/3 was planted"):
        opened(storage, MINE, clock)
    with pytest.raises(KeyRefusedError, match="does not follow"):
        bench.repository.rotate_data_key()
    del storage.objects["epochs/3"]
    # Without the master key not even the signature is right.
    stranger = Keyring(bytes(32), knows_epoch_1.repository_id)
    storage.objects["epochs/2"] = format_epoch(stranger, 2, b"\1" * 32, 1, recipients)
    with pytest.raises(IntegrityError, match="not made by this repository"):
        opened(storage, MINE, clock)
    del storage.objects["epochs/2"]
    assert opened(storage, MINE, clock).key_material == before, "an old state, which only memory tells"
    with pytest.raises(IntegrityError, match="put an old state of it back"):
        Repository.open_with_key(storage, bench.repository.key_material, expected_id=None, clock=clock)


def test_a_public_key_that_is_none_is_named(bench: Workbench) -> None:
    nobody = Recipient(key_id=bytes(16), public_key=bytes(32))
    with pytest.raises(IntegrityError, match=f"keys/{'0' * 32} has a public key that is none"):
        format_epoch(bench.repository.keyring, 2, bytes(32), 1, [nobody])


def test_he_adds_himself_to_no_epoch(bench: Workbench, storage: MemoryStorage) -> None:
    """Who knows the master key and epoch 1 can sign and could list himself among the boxes of epoch 2."""
    knows_epoch_1 = bench.repository.keyring
    bench.repository.rotate_data_key()
    (mine,) = bench.repository.list_keys()
    his_id, his_key = bytes(range(16)), bytes(PrivateKey.generate().public_key)
    recipients = [
        Recipient(key_id=bytes.fromhex(mine.id), public_key=storage.objects[f"keys/{mine.id}"][60:92]),
        Recipient(key_id=his_id, public_key=his_key),
    ]
    storage.objects["epochs/2"] = format_epoch(knows_epoch_1, 2, bytes(32), 1, recipients)
    with pytest.raises(KeyRefusedError, match="planted"):
        bench.repository.rotate_data_key()


def test_swapped_missing_and_damaged_epochs_are_named(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    for _ in range(3):
        bench.repository.rotate_data_key()

    def attempt(change: Callable[[dict[str, bytes]], object]) -> tuple[str, tuple[str, ...]]:
        damaged = copy_of(storage)
        change(damaged.objects)
        # The index and points are read with what is known already.
        repository = Repository(
            storage=damaged,
            keyring=bench.repository.keyring,
            configuration=bench.repository._configuration,
            clock=clock,
        )
        with pytest.raises(IntegrityError) as caught:
            opened(damaged, MINE, clock)
        return str(caught.value), repository.check().problems

    message, problems = attempt(
        lambda found: found.update({"epochs/2": found["epochs/3"], "epochs/3": found["epochs/2"]})
    )
    assert "epochs/2 is epoch 3 under another name" in message
    assert len(problems) == 2
    message, problems = attempt(lambda found: found.pop("epochs/3"))
    assert "epochs/3 is missing" in message
    assert problems
    message, problems = attempt(lambda found: found.update({"epochs/2": found["epochs/2"][:-1]}))
    assert "epochs/2 is damaged" in message
    assert len(problems) == 1
    message, problems = attempt(lambda found: found.update({"epochs/2": b"VMHL"}))
    assert "truncated" in message
    storage.put("epochs/2.copy", b"of an editor")
    storage.put("keys/notes.txt", b"of an editor")
    assert opened(storage, MINE, clock).key_epoch == 4


def test_every_bit_flip_of_an_epoch_is_refused(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    bench.repository.rotate_data_key()
    data = storage.objects["epochs/2"]
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        storage.objects["epochs/2"] = bytes(changed)
        with pytest.raises((IntegrityError, UnsupportedFormatError), match="epochs/2"):
            opened(storage, MINE, clock)


def test_a_task_with_the_old_key_goes_on_beside_the_new_one(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    old = bench.on(storage)
    image = random.Random(5).randbytes(100 * BLOCK_SIZE_BYTES)
    rotated: list[int] = []

    def change_the_key(offset: int) -> None:
        if offset and not rotated:
            rotated.append(bench.repository.rotate_data_key())
            backed_up(bench, 6)
        clock.now_s += 60  # so that the writer looks what others have stored

    disk = MemoryDisk(image, max_request_bytes=4 * BLOCK_SIZE_BYTES, before_read=change_the_key)
    root = old.backup(disk).map_root
    assert rotated == [2]
    bench.commit(restore_point(disk_point(root, len(image))))
    assert bench.restored(root, len(image)) == image
    assert bench.problems() == ()
    with pytest.raises(NewerEpochError, match="after the data key was changed"):
        old.on(storage).backup(image)


class KeepingStorage(StorageWrapper):
    """Lets nobody delete a key object."""

    def delete(self, name: str) -> None:
        if name.startswith("keys/"):
            raise ObjectRetainedError(f"{name} is kept until 2030-01-01")
        super().delete(name)


def test_a_key_that_immutable_storage_keeps_is_left_out_of_new_data(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    fired = by_password("fired")
    key_id = add(bench.repository, fired)
    kept = bench.on(KeepingStorage(storage)).repository
    with pytest.raises(KeyRefusedError, match=f"kept until 2030-01-01.* --without {key_id}"):
        kept.revoke_key(key_id)
    with pytest.raises(KeyRefusedError, match="the new one opens already"):
        kept.change_key(fired, by_password("rehired"), kdf_cost=CHEAP_KDF)
    everybody = [info.id for info in kept.list_keys()]
    with pytest.raises(KeyRefusedError, match="no key would open"):
        kept.rotate_data_key(without=everybody)
    assert kept.rotate_data_key(without=[key_id]) == 2
    with pytest.raises(WrongPasswordError, match="was revoked before the data key was changed"):
        opened(storage, fired, clock)
    for unlock in (MINE, by_password("rehired")):
        assert opened(storage, unlock, clock).key_epoch == 2
    with pytest.raises(KeyRefusedError, match=key_id):
        kept.rotate_data_key()
    assert kept.rotate_data_key(without=[key_id]) == 3


# ---- version 1 ----------------------------------------------------------------------------------


def test_an_old_repository_is_upgraded_and_its_keys_become_new_ones(clock: ManualClock) -> None:
    storage = MemoryStorage(clock)
    made = Repository.create(
        storage,
        PASSWORD,
        clock=clock,
        block_size_bytes=BLOCK_SIZE_BYTES,
        kdf_cost=CHEAP_KDF,
        features=(),
    )
    bench = Workbench(storage, clock, repository=made)
    first = backed_up(bench, 1)
    anna = wrap_master_key(made.keyring.master_key, "anna", made.keyring.repository_id, CHEAP_KDF)
    storage.put(f"keys/{'a' * 32}", anna)
    for operation in (
        lambda: add(made, new_key_file()),
        made.rotate_data_key,
        lambda: made.change_key(MINE, by_password("new"), kdf_cost=CHEAP_KDF),
    ):
        with pytest.raises(KeyRefusedError, match="vmhaul repository upgrade"):
            operation()
    made.modernise_key(MINE, kdf_cost=CHEAP_KDF)
    assert {info.version for info in made.list_keys()} == {1}, "not without the feature"

    assert made.upgrade_features() == ("key-epochs", "patches")
    assert made.upgrade_features() == ()
    assert opened(storage, MINE, clock).features == ("key-epochs", "patches")
    made.modernise_key(MINE, kdf_cost=CHEAP_KDF)
    assert sorted(info.version for info in made.list_keys()) == [1, 2]
    made.modernise_key(MINE, kdf_cost=CHEAP_KDF)
    assert sorted(info.version for info in made.list_keys()) == [1, 2]
    with pytest.raises(KeyRefusedError, match=f"keys/{'a' * 32} is of version 1"):
        made.rotate_data_key()
    assert opened(storage, by_password("anna"), clock).id == made.id
    made.change_key(by_password("anna"), by_password("anna"), kdf_cost=CHEAP_KDF)
    assert made.rotate_data_key() == 2
    for password in (PASSWORD, "anna"):
        again = Workbench(storage, clock, repository=opened(storage, by_password(password), clock))
        assert again.repository.key_epoch == 2
        assert again.restored(first[0], CAPACITY_BYTES) == first[1]
        assert again.problems() == ()


def test_an_old_key_object_that_was_put_back_does_not_open_after_a_rotation(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    keyring = bench.repository.keyring
    bench.repository.rotate_data_key()
    storage.put(
        f"keys/{'a' * 32}",
        wrap_master_key(keyring.master_key, "old", keyring.repository_id, CHEAP_KDF),
    )
    with pytest.raises(WrongPasswordError, match="was not given the data key of epoch 2"):
        opened(storage, by_password("old"), clock)


# ---- damage -------------------------------------------------------------------------------------


def test_a_damaged_key_does_not_keep_the_others_from_opening(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    other = add(bench.repository, by_password("other"))
    name = f"keys/{other}"
    storage.objects[name] = storage.objects[name][:-5]
    assert opened(storage, MINE, clock).id == bench.repository.id
    with pytest.raises(IntegrityError, match=f"{name}: the key object is damaged"):
        opened(storage, by_password("other"), clock)
    assert any(name in problem for problem in bench.problems())
    with pytest.raises(KeyRefusedError, match=name):
        bench.repository.rotate_data_key()


def test_a_key_object_under_another_name_does_not_open(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    (mine,) = bench.repository.list_keys()
    storage.objects[f"keys/{'0' * 32}"] = storage.objects.pop(f"keys/{mine.id}")
    storage.modified_at_s[f"keys/{'0' * 32}"] = 0
    with pytest.raises(WrongPasswordError):
        opened(storage, MINE, clock)


@pytest.mark.parametrize(("at", "value"), [(8, 3), (10, 9), (11, 2)])
def test_a_newer_key_object_is_refused_with_what_to_do(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock, at: int, value: int
) -> None:
    (mine,) = bench.repository.list_keys()
    body = bytearray(storage.objects[f"keys/{mine.id}"][:-16])
    body[at] = value
    storage.objects[f"keys/{mine.id}"] = bytes(body) + checksum(bytes(body))
    with pytest.raises(IntegrityError, match="newer vmhaul"):
        opened(storage, MINE, clock)


def test_a_planted_key_object_cannot_exhaust_memory(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    (mine,) = bench.repository.list_keys()
    body = bytearray(storage.objects[f"keys/{mine.id}"][:-16])
    body[16:20] = (2 << 20).to_bytes(4, "little")
    storage.objects[f"keys/{mine.id}"] = bytes(body) + checksum(bytes(body))
    with pytest.raises(IntegrityError, match="asks for too much"):
        opened(storage, MINE, clock)


# ---- crashes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "keeps_somebody"),
    [
        (lambda repository: add(repository, by_password("new")), True),
        (
            lambda repository: repository.change_key(
                by_password("other"), by_password("new"), kdf_cost=CHEAP_KDF
            ),
            True,
        ),
        (
            lambda repository: repository.revoke_key(
                next(info.id for info in repository.list_keys() if info.label == "other")
            ),
            False,
        ),
        (lambda repository: repository.rotate_data_key(), True),
    ],
    ids=["add", "change", "revoke", "rotate"],
)
def test_a_crash_at_every_write_leaves_a_repository_that_opens(
    operation: Callable[[Repository], object], keeps_somebody: bool
) -> None:
    for crash_at in range(1, 10):
        clock = ManualClock()
        storage = MemoryStorage(clock)
        bench = Workbench(storage, clock)
        add(bench.repository, by_password("other"), "other")
        root, image = backed_up(bench, 1)
        dying = bench.on(CrashingStorage(storage, crash_at))
        died = False
        try:
            operation(dying.repository)
        except Crash:
            died = True
        again = Workbench(storage, clock, repository=opened(storage, MINE, clock))
        assert again.restored(root, CAPACITY_BYTES) == image
        assert again.problems() == ()
        opening = set()
        for password in ("other", "new"):
            try:
                opening.add(opened(storage, by_password(password), clock).id)
            except WrongPasswordError:
                continue
        assert len(opening) == 1 or not (died or keeps_somebody)
        again.repository.rotate_data_key()
        assert Workbench(storage, clock, repository=opened(storage, MINE, clock)).problems() == ()
        if not died:
            assert crash_at > 1
            return
    pytest.fail("the operation never ended")


def test_a_crash_in_an_upgrade_leaves_a_repository_that_opens() -> None:
    for crash_at in range(1, 10):
        clock = ManualClock()
        storage = MemoryStorage(clock)
        Repository.create(storage, PASSWORD, clock=clock, kdf_cost=CHEAP_KDF, features=())
        repository = opened(CrashingStorage(storage, crash_at), MINE, clock)  # type: ignore[arg-type]
        try:
            repository.upgrade_features()
            repository.modernise_key(MINE, kdf_cost=CHEAP_KDF)
        except Crash:
            again = opened(storage, MINE, clock)
            again.upgrade_features()
            again.modernise_key(MINE, kdf_cost=CHEAP_KDF)
            assert {info.version for info in again.list_keys()} == {2}
            assert again.rotate_data_key() == 2
            continue
        assert crash_at == 4  # configuration, new key object, old key object
        return
    pytest.fail("the upgrade never ended")
