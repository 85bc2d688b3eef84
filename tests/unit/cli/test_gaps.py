from jobworker.cli.gaps import EVERY, Gaps

CAP = "the cap dropped"


def test_the_first_gap_is_said_at_once():
    gaps = Gaps("the output")
    said = gaps.note(100, 300, 0.0)
    assert said == f"200 bytes of the output are missing, from byte 100 to byte 300: {CAP} them"
    assert gaps.rest() == ""


def test_one_byte_is_one_byte():
    assert Gaps("it").note(7, 8, 0.0) == f"1 byte of it is missing, byte 7: {CAP} it"


def test_many_gaps_are_said_together_and_not_too_often():
    gaps = Gaps("it")
    gaps.note(0, 10, 0.0)
    assert gaps.note(20, 30, EVERY / 2) == ""
    assert (
        gaps.note(50, 60, EVERY)
        == f"20 bytes of it are missing, between bytes 20 and 60: {CAP} them"
    )
    assert gaps.note(70, 80, EVERY) == ""
    assert gaps.rest() == f"10 bytes of it are missing, from byte 70 to byte 80: {CAP} them"
    assert gaps.rest() == ""


def test_no_gap_says_nothing():
    assert Gaps("it").rest() == ""
